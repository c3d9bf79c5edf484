"""A network of timm's registry without grafts, its weights and the options that build it again."""

from pathlib import Path
from typing import Any

from timm.models import get_pretrained_cfg
from torch import nn

from visgraft.models import create_model
from visgraft.tasks.checkpoint import read_checkpoint, read_weights
from visgraft.tasks.errors import TrainingError
from visgraft.tasks.weights import load_strictly

__all__ = ["build_bare"]


def build_bare(
    name: str,
    *,
    num_classes: int | None = None,
    in_chans: int = 3,
    image_size: int | None = None,
    pretrained: bool = False,
    weights: str | Path | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Builds a network in evaluation mode.

    Args:
        name: In timm's registry.
        num_classes: Of the classifier; None takes the network's own number.
        in_chans: Channels of an image.
        image_size: Side in pixels; only networks that are built for one size are told.
        pretrained: Download timm's weights.
        weights: A file with the weights, by name.

    Returns:
        The network, and what ``timm.create_model`` was given beside its name.

    Raises:
        ValueError: There is no such network, or the weights cannot be had or do not fit.
    """
    options: dict[str, Any] = {}
    if num_classes is not None:
        options["num_classes"] = num_classes
    if in_chans != 3:
        options["in_chans"] = in_chans
    config = get_pretrained_cfg(name)
    if image_size is not None and config and config.fixed_input_size:
        options["img_size"] = image_size
    try:
        model = create_model(name, pretrained=pretrained, **options)
    except OSError as error:
        raise TrainingError(
            f"model {name!r}: its pretrained weights cannot be downloaded ({error}); give a file "
            "of weights"
        ) from error
    if weights is not None:
        load_strictly(model, read_weights(read_checkpoint(weights), weights), weights)
    return model.eval(), options
