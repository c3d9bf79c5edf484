"""Loading weights into a network by their names, with errors that say what does not fit."""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor, nn

from visgraft.tasks.checkpoint import read_checkpoint, read_weights
from visgraft.tasks.errors import CheckpointError

__all__ = ["is_of_detector", "load_start", "load_start_of_grafts", "load_strictly"]

_SHOWN = 3  # names in an error
_DETECTOR = "backbone.network."  # where a detector has its network
_DETECTOR_HEADS = (
    "roi_heads.box_predictor",
    "roi_heads.mask_predictor.mask_fcn_logits",
    "head.classification_head.cls_logits",
)

_logger = logging.getLogger(__name__)


def load_strictly(model: nn.Module, weights: dict[str, Tensor], path: str | Path) -> None:
    """Loads all weights of a model, or changes nothing.

    Raises:
        CheckpointError: Names or shapes differ; the text names some of them.
    """
    own = model.state_dict()
    _check_fit(path, own, weights, own.keys() - weights.keys(), weights.keys() - own.keys())
    model.load_state_dict(weights)


def is_of_detector(path: str | Path) -> bool:
    """Returns whether the weights in a file are those of a detector, and not of its network alone.

    Raises:
        CheckpointError: The checkpoint cannot be read.
    """
    return any(name.startswith(_DETECTOR) for name in read_weights(read_checkpoint(path), path))


def load_start(model: nn.Module, path: str | Path, *, quiet: bool = False) -> None:
    """Loads what a checkpoint has for a network that will be grafted.

    Heads for another number of classes are left out, which the log says. Whether the rest fits is
    seen by `load_start_of_grafts`, once the grafts are there.

    Args:
        model: Without its grafts: a classifier or a detector.
        path: Of the checkpoint.
        quiet: Say nothing of a head that will not be used anyway.

    Raises:
        CheckpointError: The checkpoint cannot be read.
    """
    own, weights = model.state_dict(), read_weights(read_checkpoint(path), path)
    other = _other_classifier(model, own, weights)
    if other and not quiet:
        _logger.warning(
            "checkpoint %s: its classifier is for another number of classes; %s left out, "
            "the network's own starts anew",
            path,
            _some(other),
        )
    fitting = {n: t for n, t in weights.items() if n in own and own[n].shape == t.shape}
    model.load_state_dict(fitting, strict=False)


def load_start_of_grafts(model: nn.Module, path: str | Path, base: set[str]) -> None:
    """Loads what a checkpoint has for the grafts of a network, after `load_start` and grafting.

    Args:
        model: With its grafts.
        path: Of the checkpoint.
        base: The names of the network's tensors before grafting.

    Raises:
        CheckpointError: A tensor of the bare network is missing, or one of the checkpoint has no
            place or another shape.
    """
    own, weights = model.state_dict(), read_weights(read_checkpoint(path), path)
    for name in _other_classifier(model, own, weights):
        weights[name] = own[name]
    lacking = (base & own.keys()) - weights.keys()
    _check_fit(path, own, weights, lacking, weights.keys() - own.keys() - base)
    in_grafts = {n: t for n, t in weights.items() if n in own and n not in base}
    model.load_state_dict(in_grafts, strict=False)


def _other_classifier(
    model: nn.Module, own: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> list[str]:
    """Returns the tensors of a head that has another number of outputs."""
    named = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or _DETECTOR_HEADS
    found = []
    for head in (named,) if isinstance(named, str) else named:
        tensors = [n for n in own if n.startswith(f"{head}.") and n in weights]
        if any(own[name].shape[0] != weights[name].shape[0] for name in tensors):
            found += tensors
    return found


def _check_fit(
    path: str | Path,
    own: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    lacking: Collection[str],
    unknown: Collection[str],
) -> None:
    told = []
    if lacking:
        told.append(f"the file lacks {_some(lacking)}")
    if unknown:
        told.append(f"the network has no place for {_some(unknown)}")
    if misshapen := [n for n in own.keys() & weights if own[n].shape != weights[n].shape]:
        told.append(f"the shapes differ in {_some(misshapen)}")
    if told:
        raise CheckpointError(f"checkpoint {path} does not fit the network: {'; '.join(told)}")


def _some(names: Collection[str]) -> str:
    first = ", ".join(sorted(names)[:_SHOWN])
    return f"{first} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else first
