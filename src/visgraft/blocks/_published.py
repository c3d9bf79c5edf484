"""Loading of published weights: layouts are recognised by their keys and translated by tables."""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from visgraft.blocks._containers import EMA_CONTAINERS, State, take_off_prefixes, unwrap
from visgraft.blocks._layouts import Fit, Layout, layouts_of, recognise, register_layouts
from visgraft.blocks._weight_files import read_weights

__all__ = [
    "Layout",
    "LoadReport",
    "layouts_of",
    "load_published",
    "register_layouts",
    "translate_published",
]


@dataclass(frozen=True)
class LoadReport:
    """What ``load_published`` found and did.

    Attributes:
        layout: Whose names the weights had; ``'visgraft'`` for our own. Several, joined by
            ``' + '``, where the parts of a network follow different ones.
        unwrapped: Containers and prefixes taken off, from the outside in.
        tensors: Number of tensors loaded.
        casts: Conversions of dtype, such as ``'float64 -> float32'``, and how often each was made.
        kept: Names here of batch counters that the weights lack and the module kept.
        ignored: Published keys outside the part that was loaded, such as a detector's heads.
        skipped: Names here of the classifier's tensors, where ``skip_head`` left them out.
        lacks_ema: Averaged weights were asked for, and the checkpoint has none.
    """

    layout: str
    unwrapped: tuple[str, ...]
    tensors: int
    casts: Mapping[str, int]
    kept: tuple[str, ...]
    ignored: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    lacks_ema: bool = False

    def __str__(self) -> str:
        """Returns the report as one line."""
        parts = [f"{self.tensors} tensors in the layout of {self.layout}"]
        if self.unwrapped:
            parts.append(f"taken out of {' > '.join(self.unwrapped)}")
        if self.lacks_ema:
            parts.append("no averaged weights in it")
        parts += [f"{count} converted {cast}" for cast, count in self.casts.items()]
        if self.kept:
            parts.append(f"batch counters kept: {len(self.kept)}")
        if self.ignored:
            parts.append(f"keys of other parts ignored: {len(self.ignored)}")
        if self.skipped:
            parts.append(f"classifier left out: {', '.join(self.skipped)}")
        return "; ".join(parts)


def load_published(
    module: nn.Module,
    weights: str | PathLike[str] | Mapping[str, Any],
    *,
    ema: bool = False,
    skip_head: bool = False,
) -> LoadReport:
    """Loads weights named as in the authors' code, a circulating copy, or this library.

    The layout is recognised by its keys; the wrappings ``state_dict``, ``state_dict_ema``,
    ``model`` and ``model_ema`` and the prefixes ``module.`` and ``backbone.`` are taken off. Every
    tensor must fit, otherwise nothing is loaded; only ``num_batches_tracked`` may be absent. Dtype
    and device stay those of the module.

    Args:
        module: A block or a network.
        weights: A state dict, a checkpoint that holds one, or the path of either: safetensors, or
            what ``torch.save`` writes, of which nothing but tensors and plain data is read.
        ema: Prefer the averaged weights, ``state_dict_ema`` or ``model_ema``, where a checkpoint
            holds both; the report says if it holds none.
        skip_head: Leave out the classifier of a timm network if the weights have one for another
            number of classes, or have none, as those of detectors; the report names its tensors,
            and the network keeps its own.

    Raises:
        ValueError: The file cannot be read or would execute code, or the weights do not fit; the
            text names the keys and shapes. Or ``skip_head`` is asked of a module that does not
            name its classifier.

    Example:
        >>> from visgraft.blocks import create_block
        >>> block = create_block("coord_attention", 16)
        >>> published = {"module.conv1.weight": torch.zeros(8, 16, 1, 1)}
        >>> load_published(block, published)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: CoordAttention: the weights do not fit ...
    """
    owner, heads = type(module).__name__, _classifiers(module)
    if any(t.is_meta for t in module.state_dict().values()):
        raise ValueError(
            f"{owner}: its tensors are on the meta device and hold nothing; call "
            "to_empty(device=...) before loading weights"
        )
    if skip_head and not heads:
        raise ValueError(
            f"{owner}: skip_head needs the classifier's name in pretrained_cfg['classifier'], and "
            "this module has none; take its tensors out of the weights instead"
        )
    raw = weights if isinstance(weights, Mapping) else read_weights(weights)
    state, unwrapped = unwrap(raw, ema=ema)
    state, prefixes, ignored = take_off_prefixes(state, module.state_dict())
    fit, skipped = recognise(module, state), ()
    if skip_head:
        fit, skipped = fit.without(heads)
    if fit.misfits:
        left, _ = fit.without(heads)
        hint = (
            ""
            if left.misfits
            else f"; skip_head=True leaves out the classifier {' and '.join(heads)}"
        )
        raise ValueError(f"{owner}: the weights do not fit {fit.complaint()}{hint}")
    casts = _casts(module, fit)
    current = module.state_dict()
    module.load_state_dict({key: fit.state.get(key, value) for key, value in current.items()})
    return LoadReport(
        layout=fit.layout,
        unwrapped=(*unwrapped, *prefixes),
        tensors=len(fit.state),
        casts=casts,
        kept=tuple(key for key in current if key not in fit.state and key not in skipped),
        ignored=ignored,
        skipped=skipped,
        lacks_ema=ema and not {*unwrapped} & {*EMA_CONTAINERS},
    )


def translate_published(module: nn.Module, weights: Mapping[str, Any]) -> State:
    """Returns published weights under the names of a module, which stays as it is.

    What does not fit is there as well: a classifier of another number of classes, a first
    convolution of other image channels. So the caller can adapt both, as timm does.

    Args:
        module: A block or a network; it may be on the meta device.
        weights: A state dict, or a checkpoint that holds one.

    Returns:
        The tensors of ``weights``, by their names here. Weights that come closest to the names of
        this library keep theirs.

    Raises:
        ValueError: ``weights`` holds no state dict.
    """
    state, _ = unwrap(weights, ema=False)
    state, _, _ = take_off_prefixes(state, module.state_dict())
    return recognise(module, state).state


def _classifiers(module: nn.Module) -> tuple[str, ...]:
    """Returns the paths of the classifiers that a timm network names."""
    config = getattr(module, "pretrained_cfg", None)
    named = config.get("classifier") if isinstance(config, Mapping) else None
    return (named,) if isinstance(named, str) else tuple(named or ())


def _casts(module: nn.Module, fit: Fit) -> dict[str, int]:
    """Counts the conversions of dtype and refuses those that would destroy values."""
    casts: dict[str, int] = {}
    for key, own in module.state_dict().items():
        value = fit.state.get(key)
        if value is None or value.dtype == own.dtype:
            continue
        text = f"{_short(value.dtype)} -> {_short(own.dtype)}"
        if _loses(value, own.dtype):
            raise ValueError(
                f"{type(module).__name__}: {fit.published_name(key)} does not survive {text}; "
                "give the module the dtype of the weights first"
            )
        casts[text] = casts.get(text, 0) + 1
    return casts


def _loses(value: Tensor, dtype: torch.dtype) -> bool:
    converted = value.to(dtype)
    if value.is_floating_point() != dtype.is_floating_point:
        return value.numel() != 1 or bool((converted.to(value.dtype) != value).any())
    return bool((value.isfinite() & ~converted.isfinite()).any())


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
