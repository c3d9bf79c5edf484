"""From a recipe and a network to a detector."""

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import get_pretrained_cfg
from torch import nn

from visgraft.tasks.checkpoint import InputSpec, read_checkpoint, read_record
from visgraft.tasks.recipe import Recipe

__all__ = ["detector_input", "surround"]

_DIVISOR = 32  # detectors pad the sides of a batch to multiples of it


def detector_input(recipe: Recipe) -> InputSpec:
    """Returns how images become the input of a recipe's detector.

    Mean and deviation are those that the weights were trained with, as far as it is known: those of
    the run that wrote the checkpoint, else those of the network in timm, else ImageNet's. The size
    is a square of the evaluation's shorter side, for grafts that are made for a size.
    """
    side = -(-recipe.min_size[-1] // _DIVISOR) * _DIVISOR
    mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    if config := get_pretrained_cfg(recipe.model):
        mean, std = config.mean, config.std
    if recipe.checkpoint:
        record = read_record(read_checkpoint(recipe.checkpoint), recipe.checkpoint)
        if record and len(record.input.mean) == len(mean):
            mean, std = record.input.mean, record.input.std
    return InputSpec((side, side), tuple(mean), tuple(std), interpolation="bilinear")


def surround(network: nn.Module, recipe: Recipe, num_classes: int, spec: InputSpec) -> nn.Module:
    """Builds the recipe's detector on a network, in training mode.

    Raises:
        ValueError: The network cannot serve, or an argument of the detector is wrong.
    """
    from visgraft.tasks.detection.detectors import build_detector

    return build_detector(
        str(recipe.detector),
        network,
        num_classes=num_classes,
        image_size=(recipe.min_size, recipe.max_size),
        mean=spec.mean,
        std=spec.std,
        frozen_stages=recipe.frozen_stages,
        frozen_norm=recipe.frozen_norm,
        **recipe.detector_args,
    )
