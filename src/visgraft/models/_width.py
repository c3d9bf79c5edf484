"""Widths of networks: which constructor arguments set them, and those that timm's entries fix.

timm's EfficientNets and MobileNets scale their channels by a multiplier that each entry function
fixes; here it can be given all the same.
"""

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import partial, wraps
from typing import Any

import timm
import torch
from timm.models._efficientnet_builder import round_channels
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from torch import nn

__all__ = ["MULTIPLIED", "constructor_arguments", "multiplied"]

MULTIPLIED = ("channel_multiplier", "num_features")
"""Arguments of `multiplied`."""

_lock = threading.RLock()


@contextmanager
def multiplied(name: str, changes: dict[str, Any]) -> Iterator[None]:
    """Lets EfficientNets and MobileNets that are built inside have other channels.

    Args:
        name: Of the network that is built, for the complaint.
        changes: ``channel_multiplier`` in place of the entry's own, which also scales the features
            before the classifier, unless ``num_features`` gives their number.

    Raises:
        ValueError: No such network was built inside.
    """
    used: list[type[nn.Module]] = []

    def change(cls: type[nn.Module], arguments: dict[str, Any]) -> dict[str, Any]:
        used.append(cls)
        rounding = arguments.get("round_chs_fn") or round_channels
        keywords = getattr(rounding, "keywords", {})
        function = getattr(rounding, "func", rounding)
        own = keywords.get("multiplier", 1.0)
        multiplier = changes.get("channel_multiplier", own)
        features = arguments.get("num_features", 1280)
        if features and multiplier != own:
            features = round_channels(features, multiplier / own)
        return arguments | {
            "round_chs_fn": partial(function, **keywords | {"multiplier": multiplier}),
            "num_features": changes.get("num_features", features),
        }

    with _lock, _intercepted(EfficientNet, change), _intercepted(MobileNetV3, change):
        yield
    if not used:
        raise ValueError(f"model {name!r} takes no argument {next(iter(changes))!r}")


def constructor_arguments(name: str, **kwargs: Any) -> dict[str, Any]:
    """Returns what a network's class was built with: its entry's arguments, and its defaults.

    Defaults of the classes that it hands arguments on to count, too, and the fields of a
    configuration that keyword arguments are laid over.

    Args:
        name: In timm's registry.
        kwargs: As `timm.create_model` takes them.
    """
    found: dict[str, Any] = {}

    def note(cls: type[nn.Module], arguments: dict[str, Any]) -> dict[str, Any]:
        if not found:
            found.update(_defaults(cls) | _fields(arguments.get("cfg")) | arguments)
        return arguments

    with torch.device("meta"), _lock:
        cls = type(timm.create_model(name, **kwargs))
        with _intercepted(cls, note):
            timm.create_model(name, **kwargs)
    return found


def _defaults(cls: type[nn.Module]) -> dict[str, Any]:
    """Returns the defaults of a constructor and of those that it passes keywords on to."""
    found: dict[str, Any] = {}
    for one in cls.__mro__:
        if "__init__" not in vars(one):
            continue
        parameters = inspect.signature(one).parameters.values()
        known = {p.name: p.default for p in parameters if p.default is not p.empty}
        found = known | found
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    return found


def _fields(configuration: Any) -> dict[str, Any]:
    if not is_dataclass(configuration) or isinstance(configuration, type):
        return {}
    return {field.name: getattr(configuration, field.name) for field in fields(configuration)}


@contextmanager
def _intercepted(
    cls: type[nn.Module], change: Callable[[type[nn.Module], dict[str, Any]], dict[str, Any]]
) -> Iterator[None]:
    """Sends the arguments of a class through ``change`` before its constructor gets them."""
    original = cls.__init__
    signature = inspect.signature(original)

    @wraps(original)
    def init(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        _, *own = signature.bind(self, *args, **kwargs).arguments.items()
        arguments: dict[str, Any] = {}
        for name, value in own:
            gathers = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            arguments |= value if gathers else {name: value}
        original(self, **change(type(self), arguments))

    cls.__init__ = init
    try:
        yield
    finally:
        cls.__init__ = original
