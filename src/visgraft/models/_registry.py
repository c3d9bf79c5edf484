"""Creation of any network of timm's registry, ours included, with errors that name the nearest."""

import re
from difflib import get_close_matches
from typing import Any

import timm
from torch import nn

from visgraft.models._width import MULTIPLIED, multiplied
from visgraft.models._width_resizing import WIDENED, factor_of, resized

__all__ = ["UnknownModelError", "create_model", "list_models"]


class UnknownModelError(ValueError):
    """No network of this name is registered."""


def list_models(pattern: str = "") -> list[str]:
    """Returns the names of all networks, timm's and ours, that match a shell pattern."""
    return timm.list_models(pattern)


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """Builds a network by its name in timm's registry.

    Args:
        name: Such as ``"resnet18"``, with or without a weights tag (``"resnet18.a1_in1k"``).
        kwargs: Passed to timm: ``pretrained``, ``num_classes``, ``in_chans``, ``features_only``, or
            an argument of the network's own class. EfficientNets and MobileNets also take
            ``channel_multiplier``, in place of the one that their name stands for, and with it
            ``num_features``; networks of any family take ``widened``, how many times as wide they
            are to be, and then have random weights.

    Raises:
        UnknownModelError: There is no such network; the text has the nearest names.
        ValueError: The network's class does not take one of ``kwargs``, or it cannot be widened.
    """
    architecture = name.split(".", 1)[0]
    if ":" not in name and not timm.is_model(architecture):  # "hf-hub:..." is looked up by timm
        near = get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.5)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise UnknownModelError(
            f"model {name!r} is not registered in timm or visgraft{hint}; "
            "timm.list_models() has all names"
        )
    if WIDENED in kwargs:
        factor = factor_of(name, kwargs)
        rest = {key: value for key, value in kwargs.items() if key != WIDENED}
        return resized(name, create_model(name, **rest), factor, rest)
    try:
        if "channel_multiplier" in kwargs:
            rest = {key: value for key, value in kwargs.items() if key not in MULTIPLIED}
            changes = {key: value for key, value in kwargs.items() if key in MULTIPLIED}
            with multiplied(name, changes):
                return timm.create_model(name, **rest)
        return timm.create_model(name, **kwargs)
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown and unknown[1] in kwargs:
            raise ValueError(f"model {name!r} takes no argument {unknown[1]!r}") from error
        raise
