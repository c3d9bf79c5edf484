"""Keeps a unit of convolution and normalisation from being folded into one convolution.

Some libraries (ultralytics before validation and export) fold the normalisation of a unit into its
convolution, and drop it: a graft between the two would then work on another map, one on the
normalisation would be lost. They know such units by their class, which has a method
``forward_fuse``. A unit with a graft inside therefore is of another class, which computes the same.
"""

from collections.abc import Iterable
from typing import Any

from torch import nn

__all__ = ["KeptApart", "keep_apart", "rejoin", "units_around"]


class KeptApart(nn.Module):
    """A unit that its library does not fold; not to be constructed, see :func:`keep_apart`.

    All attributes, tensors and hooks stay those of the unit, and it is the same object.

    Attributes:
        unit_class: What it was.
        grafts_inside: How many grafts need it.
    """

    unit_class: type[nn.Module]
    grafts_inside: int

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Computes what the unit computes."""
        return self.unit_class.forward(self, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        unit_class = self.__dict__.get("unit_class")
        if unit_class is not None and hasattr(unit_class, name):
            found = getattr(unit_class, name)
            return found.__get__(self) if callable(found) else found
        return super().__getattr__(name)

    def extra_repr(self) -> str:
        """Shows what the unit was."""
        return f"unit_class={self.unit_class.__name__}"


def units_around(modules: dict[str, nn.Module], paths: Iterable[str]) -> list[nn.Module]:
    """Returns the units that hold the layers at ``paths`` and are not folded yet."""
    found: dict[nn.Module, None] = {}
    for path in paths:
        while "." in path:
            path = path.rpartition(".")[0]
            unit = modules.get(path)
            if isinstance(unit, KeptApart) or (
                callable(getattr(type(unit), "forward_fuse", None))
                and unit is not None
                and "forward" not in vars(unit)
            ):
                found[unit] = None
    return list(found)


def keep_apart(unit: nn.Module) -> None:
    """Keeps a unit from being folded, until :func:`rejoin` was called as often."""
    if isinstance(unit, KeptApart):
        unit.grafts_inside += 1
        return
    vars(unit).update(unit_class=type(unit), grafts_inside=1)
    object.__setattr__(unit, "__class__", KeptApart)


def rejoin(unit: nn.Module) -> None:
    """Takes one :func:`keep_apart` back."""
    if not isinstance(unit, KeptApart):
        raise TypeError(f"rejoin: {type(unit).__name__} is not kept apart")
    unit.grafts_inside -= 1
    if unit.grafts_inside == 0:
        object.__setattr__(unit, "__class__", unit.unit_class)
        del vars(unit)["unit_class"], vars(unit)["grafts_inside"]
