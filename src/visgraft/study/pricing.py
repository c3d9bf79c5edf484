"""What the networks of a study cost, counted the same way for all of them."""

from torch import nn

from visgraft.inspect import cost
from visgraft.tasks.building import resolve_input
from visgraft.tasks.images import RunData
from visgraft.tasks.recipe import Recipe

__all__ = ["count_macs", "count_parameters", "counted_part", "macs_of"]


def counted_part(model: nn.Module, recipe: Recipe) -> nn.Module:
    """Returns what is the work of the network: a classifier, or a detector's backbone and pyramid.

    The heads of a detector are the same in all networks of a study, and how much they compute
    depends on what they find.
    """
    return model.get_submodule("backbone") if recipe.finds_objects else model


def count_parameters(model: nn.Module) -> int:
    """Returns the parameters of a module."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, recipe: Recipe, data: RunData) -> int:
    """Returns the multiplications with addition of the counted part for one image.

    Args:
        model: What the recipe builds.
        recipe: Says the size of the image.
        data: Says its channels.
    """
    example = (1, data.in_chans, *resolve_input(recipe, data).size)
    return cost(counted_part(model, recipe), example).macs


def macs_of(recipe: Recipe, data: RunData) -> str:
    """Returns what `count_macs` counts, in words."""
    if not recipe.finds_objects:
        return "one image"
    height, width = resolve_input(recipe, data).size
    return f"backbone and pyramid, one image of {height} x {width} pixels"
