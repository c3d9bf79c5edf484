"""Checkpoints of the authors, translated to the names of our networks."""

from os import PathLike
from typing import Any

from torch import Tensor

from visgraft.blocks import LoadReport, load_published
from visgraft.models._registry import create_model

__all__ = ["convert_published"]


def convert_published(
    weights: str | PathLike[str],
    model: str,
    *,
    ema: bool = False,
    skip_head: bool = False,
    **options: Any,
) -> tuple[dict[str, Tensor], LoadReport]:
    """Returns what a checkpoint holds for a network, under the names that the network has.

    Args:
        weights: Path of a checkpoint that `load_published` reads.
        model: The network's name in timm's registry.
        ema: As `load_published` takes it.
        skip_head: As `load_published` takes it; a classifier that is left out is not among the
            tensors.
        options: Of the network: ``num_classes``, ``in_chans``, ``img_size`` and the like.

    Returns:
        The whole state of the network, batch counters included, and what was loaded.

    Raises:
        ValueError: There is no such network, it does not take an option, or the checkpoint cannot
            be read or does not fit.
    """
    network = create_model(model, **options)
    report = load_published(network, weights, ema=ema, skip_head=skip_head)
    state = network.state_dict()
    return {k: v.contiguous() for k, v in state.items() if k not in report.skipped}, report
