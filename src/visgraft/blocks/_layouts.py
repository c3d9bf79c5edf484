"""Layouts of published code as data; a state dict is recognised and translated by them."""

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

from torch import nn

from visgraft.blocks._containers import State

__all__ = ["Fit", "Layout", "layouts_of", "recognise", "register_layouts"]

Shapes = Mapping[str, tuple[int, ...]]
Value = TypeVar("Value")

_OWN = "visgraft"
_COUNTER = ".num_batches_tracked"
_LISTED = 8  # keys that an error names before it counts the rest


@dataclass(frozen=True)
class Layout:
    """How one published code names the tensors of a class.

    Attributes:
        name: Whose code it is.
        renames: Dotted prefix in the published state dict to dotted prefix here. ``*`` stands for
            one whole component; the stars on the right take what those on the left found. The
            first entry that matches counts; a key that none matches keeps its name.
        adapt: Called with the module and the renamed tensors, for what names alone cannot say:
            to merge, split, reshape or drop tensors. Returns the new tensors; a KeyError says that
            the layout is another one.
    """

    name: str
    renames: Mapping[str, str] = field(default_factory=dict)
    adapt: Callable[[nn.Module, State], State] | None = None

    def rename(self, key: str) -> str:
        """Returns the name here of a published key."""
        for pattern, replacement in self._patterns:
            match = pattern.match(key)
            if match is not None:
                found = iter(match.groups())
                prefix = re.sub(r"\*", lambda _: next(found), replacement)  # noqa: B023
                return prefix + key[match.end() :]
        return key

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], str]]:
        return [
            (re.compile(re.escape(old).replace(r"\*", r"([^.]+)") + r"(?=\.|$)"), new)
            for old, new in self.renames.items()
        ]


_LAYOUTS: dict[type[nn.Module], tuple[Layout, ...]] = {}


def register_layouts(cls: type[nn.Module], *layouts: Layout) -> None:
    """Adds published layouts of a class, for ``load_published`` to recognise.

    They hold for the class wherever it stands in a network, and for its subclasses. Keys are
    relative to the module.

    Raises:
        ValueError: The class has a layout of this name already.
    """
    names = [layout.name for layout in (*_LAYOUTS.get(cls, ()), *layouts)]
    for name in names:
        if name == _OWN or names.count(name) > 1:
            raise ValueError(f"register_layouts: {cls.__name__} has a layout {name!r} already")
    _LAYOUTS[cls] = (*_LAYOUTS.get(cls, ()), *layouts)


def layouts_of(cls: type[nn.Module]) -> tuple[Layout, ...]:
    """Returns the published layouts known for a class, its base classes' included."""
    return tuple(layout for base in cls.__mro__ for layout in _LAYOUTS.get(base, ()))


@dataclass(frozen=True)
class Fit:
    """A translation of published tensors, and how it differs from what the module needs.

    Attributes:
        layouts: Names of the published layouts that were met; none where all names are our own.
        state: The tensors by their names here.
        origin: The published key of each name here.
        missing: Names here that the weights lack; batch counters may be absent.
        unexpected: Names here that the module does not have.
        clashing: Published keys that have the name of another one here.
        misshapen: The shape that the module has, by the name here of each tensor of another shape.
    """

    layouts: tuple[str, ...]
    state: State
    origin: Mapping[str, str]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    clashing: tuple[str, ...]
    misshapen: Mapping[str, tuple[int, ...]]

    @property
    def layout(self) -> str:
        """What a report calls the layouts."""
        return " + ".join(self.layouts) or _OWN

    @property
    def misfits(self) -> int:
        """How many tensors do not fit."""
        return sum(map(len, (self.missing, self.unexpected, self.clashing, self.misshapen)))

    def without(self, parts: tuple[str, ...]) -> tuple["Fit", tuple[str, ...]]:
        """Returns the fit without some submodules, and the names here of what did not fit there.

        A submodule of which every tensor fits is kept.
        """
        gone: list[str] = []
        for part in parts:
            names = {*self.state, *self.missing}
            inside = [name for name in names if name.startswith(f"{part}.")]
            if {*inside} & {*self.missing, *self.unexpected, *self.misshapen}:
                gone += sorted(inside)
        left = replace(
            self,
            state={name: value for name, value in self.state.items() if name not in gone},
            missing=tuple(name for name in self.missing if name not in gone),
            unexpected=tuple(name for name in self.unexpected if name not in gone),
            misshapen={name: s for name, s in self.misshapen.items() if name not in gone},
        )
        return left, tuple(gone)

    def complaint(self) -> str:
        """Returns the second half of a sentence on what does not fit."""
        told = []
        if self.missing:
            told.append(f"missing, by its name here, {_listed(self.missing)}")
        if self.unexpected or self.clashing:
            unexpected = (*map(self.published_name, self.unexpected), *self.clashing)
            told.append(f"unexpected {_listed(unexpected)}")
        if self.misshapen:
            shapes = (
                f"{self.published_name(name)} is {tuple(self.state[name].shape)} and should be "
                f"{shape}"
                for name, shape in self.misshapen.items()
            )
            told.append(_listed(tuple(shapes)))
        return f"(nearest layout: {self.layout}): {'; '.join(told)}"

    def published_name(self, name: str) -> str:
        """Returns the published key of a name here."""
        return self.origin.get(name, name)


def recognise(module: nn.Module, state: State) -> Fit:
    """Returns the translation of ``state`` that fits the module best."""
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    return _recognise(module, state, expected)


def _recognise(module: nn.Module, state: State, expected: Shapes) -> Fit:
    """Tries the layouts of the module, our own names first, until one fits."""
    fits = []
    for layout in (Layout(_OWN), *layouts_of(type(module))):
        fits.append(_translate(module, state, layout, expected))
        if not fits[-1].misfits:
            break
    return min(fits, key=lambda fit: fit.misfits)


def _translate(module: nn.Module, state: State, layout: Layout, expected: Shapes) -> Fit:
    """Translates ``state`` by one layout of the module, and its parts by the best of theirs."""
    renamed: State = {}
    origin: dict[str, str] = {}
    clashing: list[str] = []
    for key, value in state.items():
        new = layout.rename(key)
        if new in renamed:
            clashing.append(key)
        renamed[new], origin[new] = value, key
    if layout.adapt is not None:
        with suppress(KeyError):
            renamed = layout.adapt(module, renamed)
    names = [] if layout.name == _OWN else [layout.name]
    parts = _parts_with_layouts(module)
    tensors, shapes = _by_part(renamed, parts), _by_part(expected, parts)
    for path, part in parts.items():
        fit = _recognise(part, tensors[path], shapes[path])
        if not fit.layouts:
            continue
        names += fit.layouts
        for key in tensors[path]:
            del renamed[f"{path}.{key}"]
        renamed |= {f"{path}.{k}": v for k, v in fit.state.items()}
        for new, old in fit.origin.items():
            origin[f"{path}.{new}"] = origin.get(f"{path}.{old}", f"{path}.{old}")
    return Fit(
        layouts=tuple(dict.fromkeys(names)),
        state=renamed,
        origin=origin,
        missing=tuple(k for k in expected if k not in renamed and not f".{k}".endswith(_COUNTER)),
        unexpected=tuple(k for k in renamed if k not in expected),
        clashing=tuple(clashing),
        misshapen={
            k: shape
            for k, shape in expected.items()
            if k in renamed and tuple(renamed[k].shape) != shape
        },
    )


def _parts_with_layouts(module: nn.Module) -> dict[str, nn.Module]:
    """Returns the outermost submodules that have layouts; what is inside them is theirs."""
    parts: dict[str, nn.Module] = {}
    last = ""
    for path, part in module.named_modules():
        if path and not (last and path.startswith(last)) and layouts_of(type(part)):
            parts[path] = part
            last = f"{path}."
    return parts


def _by_part(items: Mapping[str, Value], paths: Iterable[str]) -> dict[str, dict[str, Value]]:
    """Sorts items by the part that their dotted name lies in, and names them relative to it."""
    found: dict[str, dict[str, Value]] = {path: {} for path in paths}
    for name, value in items.items():
        end = name.find(".")
        while end >= 0:
            if name[:end] in found:
                found[name[:end]][name[end + 1 :]] = value
                break
            end = name.find(".", end + 1)
    return found


def _listed(items: tuple[str, ...]) -> str:
    rest = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(items[:_LISTED]) + rest
