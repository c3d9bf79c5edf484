"""The two changes that surgery makes to a model, each of which can be taken back."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from visgraft.surgery._apart import keep_apart, rejoin
from visgraft.surgery.holders import Holder

__all__ = ["Insertion", "Operation", "Replacement"]

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)
NUMBERING = ("i", "f", "type", "np")  # what ultralytics notes on the rows of a network
GEOMETRY = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")


class Insertion:
    """A holder that becomes a child of ``home`` and a hook of ``layer``; ``units`` hold these."""

    def __init__(
        self,
        layer: nn.Module,
        home: nn.Module,
        holder: Holder,
        units: Sequence[nn.Module] = (),
    ) -> None:
        self.units = units
        self.layer = layer
        self.home = home
        self.holder = holder
        self.name = "graft"
        self.handle: RemovableHandle | None = None

    def apply(self) -> None:
        """Makes the change."""
        for unit in self.units:
            keep_apart(unit)
        count = 1
        while hasattr(self.home, self.name):
            count += 1
            self.name = f"graft_{count}"
        self.home.add_module(self.name, self.holder)
        # First of the hooks: those of the user see what the layer returns with its graft.
        self.handle = self.layer.register_forward_hook(self.holder.on_output, prepend=True)

    def revert(self) -> None:
        """Takes the change back."""
        if self.handle is not None:
            self.handle.remove()
        delattr(self.home, self.name)
        for unit in self.units:
            rejoin(unit)

    @property
    def new(self) -> nn.Module:
        """What the change puts into the model."""
        return self.holder

    def obstacle(self) -> str | None:
        """Says why the change cannot be taken back, or returns None."""
        there = getattr(self.home, self.name, None) is self.holder
        return None if there else f"the module {self.name!r} is no longer where it was put"

    def removed_parameters(self) -> dict[str, nn.Parameter]:
        """Returns the parameters of what the change takes out: none."""
        return {}

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Lets the model compute without the change."""
        was, self.holder.enabled = self.holder.enabled, False
        try:
            yield
        finally:
            self.holder.enabled = was


class Replacement:
    """A module that takes the place of a layer, under all its names and with all its hooks.

    The hooks are shared, so their handles go on working. A block that contains the layer leaves
    them where they are.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: nn.Module,
        block: nn.Module,
        units: Sequence[nn.Module] = (),
    ) -> None:
        if any(block.__dict__[name] for name in HOOKS):  # these stay with the block
            block = nn.Sequential(OrderedDict(block=block)).train(block.training)
        self.places = [
            (parent, name)
            for parent in model.modules()
            for name, child in parent._modules.items()
            if child is layer
        ]
        self.units = units
        self.layer = layer
        self.block = block
        _take_numbers(layer, block)
        self.own_hooks: dict[str, Any] = {name: block.__dict__[name] for name in HOOKS}
        self.takes_hooks = all(module is not layer for module in block.modules())

    def apply(self) -> None:
        """Makes the change."""
        if self.takes_hooks:
            self.block.__dict__.update({name: self.layer.__dict__[name] for name in HOOKS})
        self._put(self.block)
        for unit in self.units:
            keep_apart(unit)

    def revert(self) -> None:
        """Takes the change back."""
        for unit in self.units:
            rejoin(unit)
        self._put(self.layer)
        self.block.__dict__.update(self.own_hooks)

    @property
    def new(self) -> nn.Module:
        """What the change puts into the model."""
        return self.block

    def obstacle(self) -> str | None:
        """Says why the change cannot be taken back, or returns None."""
        if any(parent._modules.get(name) is not self.block for parent, name in self.places):
            return "a layer it put in has been replaced since; undo the later graft first"
        if any(isinstance(module, Holder) for module in self.block.modules()):
            return "a layer it put in has been grafted since; undo the later graft first"
        return None

    def removed_parameters(self) -> dict[str, nn.Parameter]:
        """Returns the parameters of the layer, some of which the block may hold."""
        return dict(self.layer.named_parameters())

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Lets the model compute without the change."""
        self._put(self.layer)
        try:
            yield
        finally:
            self._put(self.block)

    def _put(self, module: nn.Module) -> None:
        for parent, name in self.places:
            parent._modules[name] = module


def _take_numbers(layer: nn.Module, block: nn.Module) -> None:
    """Gives a block what the rest of the model reads from the layer besides its output."""
    if all(name in vars(layer) for name in NUMBERING):
        block.__dict__.update({name: vars(layer)[name] for name in NUMBERING})
    for name in GEOMETRY:
        if isinstance(layer, nn.Conv2d) and not hasattr(block, name):
            setattr(block, name, getattr(layer, name))


Operation = Insertion | Replacement
