"""Loading of published weights: layouts are recognised by their keys and translated by tables."""

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from visgraft.blocks._weight_files import read_weights

__all__ = ["Layout", "LoadReport", "layouts_of", "load_published", "register_layouts"]

_WRAPPERS = ("state_dict", "state_dict_ema", "model")
_PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.")
_OWN = "visgraft"
_LISTED = 8  # keys that an error names before it counts the rest

State = dict[str, Tensor]


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
    """

    layout: str
    unwrapped: tuple[str, ...]
    tensors: int
    casts: Mapping[str, int]
    kept: tuple[str, ...]
    ignored: tuple[str, ...]

    def __str__(self) -> str:
        """Returns the report as one line."""
        parts = [f"{self.tensors} tensors in the layout of {self.layout}"]
        if self.unwrapped:
            parts.append(f"taken out of {' > '.join(self.unwrapped)}")
        parts += [f"{count} converted {cast}" for cast, count in self.casts.items()]
        if self.kept:
            parts.append(f"batch counters kept: {len(self.kept)}")
        if self.ignored:
            parts.append(f"keys of other parts ignored: {len(self.ignored)}")
        return ", ".join(parts)


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


def load_published(
    module: nn.Module, weights: str | PathLike[str] | Mapping[str, Any], *, ema: bool = False
) -> LoadReport:
    """Loads weights named as in the authors' code, a circulating copy, or this library.

    The layout is recognised by its keys; the wrappings ``state_dict``, ``state_dict_ema`` and
    ``model`` and the prefixes ``module.`` and ``backbone.`` are taken off. Every tensor must fit,
    otherwise nothing is loaded; only ``num_batches_tracked`` may be absent. Dtype and device stay
    those of the module.

    Args:
        module: A block or a network.
        weights: A state dict, a checkpoint that holds one, or the path of either: safetensors, or
            what ``torch.save`` writes, of which nothing but tensors and plain data is read.
        ema: Take ``state_dict_ema`` where a checkpoint holds both.

    Raises:
        ValueError: The file cannot be read or would execute code, or the weights do not fit; the
            text names the keys and shapes.

    Example:
        >>> from visgraft.blocks import create_block
        >>> block = create_block("coord_attention", 16)
        >>> published = {"module.conv1.weight": torch.zeros(8, 16, 1, 1)}
        >>> load_published(block, published)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: CoordAttention: the weights do not fit ...
    """
    if any(t.is_meta for t in module.state_dict().values()):
        raise ValueError(
            f"{type(module).__name__}: its tensors are on the meta device and hold nothing; call "
            "to_empty(device=...) before loading weights"
        )
    raw = weights if isinstance(weights, Mapping) else read_weights(weights)
    state, unwrapped = _unwrap(raw, ema)
    state, prefixes, ignored = _strip(state, module.state_dict())
    fit = _recognise(module, state)
    if not fit.fits:
        raise ValueError(f"{type(module).__name__}: the weights do not fit {fit.complaint()}")
    casts = _casts(module, fit)
    current = module.state_dict()
    module.load_state_dict({key: fit.state.get(key, value) for key, value in current.items()})
    kept = tuple(key for key in current if key not in fit.state)
    return LoadReport(fit.layout, (*unwrapped, *prefixes), len(fit.state), casts, kept, ignored)


@dataclass
class _Fit:
    """A translation of published tensors, and how it differs from what the module needs."""

    layout: str
    state: State
    origin: dict[str, str]  # published key of each key here
    missing: list[str]
    unexpected: list[str]
    misshapen: list[str]

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.misshapen)

    def complaint(self) -> str:
        """Returns the second half of a sentence on what does not fit."""
        parts = [f"(nearest layout: {self.layout})"]
        if self.missing:
            parts.append(f"missing, by its name here, {_listed(self.missing)}")
        if self.unexpected:
            parts.append(f"unexpected {_listed(self.unexpected)}")
        if self.misshapen:
            parts.append(_listed(self.misshapen))
        return f"{parts[0]}: {'; '.join(parts[1:])}"


def _unwrap(weights: Mapping[str, Any], ema: bool) -> tuple[State, tuple[str, ...]]:
    """Takes off the containers around a state dict."""
    unwrapped: list[str] = []
    wrappers = ("state_dict_ema", *_WRAPPERS) if ema else _WRAPPERS
    while True:
        inner = next((key for key in wrappers if isinstance(weights.get(key), Mapping)), None)
        if inner is None:
            break
        weights = weights[inner]
        unwrapped.append(inner)
    for key, value in weights.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            kind = type(value).__name__
            raise ValueError(
                f"load_published: expected a state dict of tensors, got {kind} under {key!r}; "
                f"wrappings looked into: {', '.join(_WRAPPERS)}"
            )
    if not weights:
        raise ValueError("load_published: the state dict is empty")
    return dict(weights), tuple(unwrapped)


def _strip(state: State, expected: Iterable[str]) -> tuple[State, tuple[str, ...], tuple[str, ...]]:
    """Takes off prefixes that the module's own keys do not have.

    ``backbone.`` need not be on all keys: the rest belongs to other parts of a detector.
    """
    expected = list(expected)
    stripped: list[str] = []
    ignored: list[str] = []
    while True:
        for prefix in _PREFIXES:
            inside = {k: v for k, v in state.items() if k.startswith(prefix)}
            wanted = any(key.startswith(prefix) for key in expected)
            share = len(inside) / len(state)
            if not wanted and (share == 1 or (prefix == "backbone." and share > 0.5)):
                ignored += [k for k in state if k not in inside]
                state = {k.removeprefix(prefix): v for k, v in inside.items()}
                stripped.append(prefix)
                break
        else:
            return state, tuple(stripped), tuple(ignored)


def _recognise(module: nn.Module, state: State) -> _Fit:
    """Returns the translation of ``state`` that fits the module best."""
    candidates = (Layout(_OWN), *layouts_of(type(module)))
    return min((_translate(module, state, layout) for layout in candidates), key=_misfit)


def _misfit(fit: _Fit) -> int:
    return len(fit.missing) + len(fit.unexpected) + len(fit.misshapen)


def _translate(module: nn.Module, state: State, layout: Layout) -> _Fit:
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
    names = [layout.name]
    for path, part in module.named_modules():
        if not path or not layouts_of(type(part)):
            continue
        inside = {
            k.removeprefix(f"{path}."): v for k, v in renamed.items() if k.startswith(f"{path}.")
        }
        fit = _recognise(part, inside)
        if fit.layout != _OWN:
            names.append(fit.layout)
            renamed = {k: v for k, v in renamed.items() if not k.startswith(f"{path}.")}
            renamed |= {f"{path}.{k}": v for k, v in fit.state.items()}
            for new, old in fit.origin.items():
                origin[f"{path}.{new}"] = origin.get(f"{path}.{old}", f"{path}.{old}")
    return _compare(module, renamed, origin, clashing, names)


def _compare(
    module: nn.Module, state: State, origin: dict[str, str], clashing: list[str], names: list[str]
) -> _Fit:
    expected = module.state_dict()
    optional = ".num_batches_tracked"
    missing = [k for k in expected if k not in state and not f".{k}".endswith(optional)]
    unexpected = [origin.get(k, k) for k in state if k not in expected] + clashing
    misshapen = [
        f"{origin.get(k, k)} is {tuple(state[k].shape)} and should be {tuple(v.shape)}"
        for k, v in expected.items()
        if k in state and state[k].shape != v.shape
    ]
    published = dict.fromkeys(name for name in names if name != _OWN)
    return _Fit(" + ".join(published) or _OWN, state, origin, missing, unexpected, misshapen)


def _casts(module: nn.Module, fit: _Fit) -> dict[str, int]:
    """Counts the conversions of dtype and refuses those that would destroy values."""
    casts: dict[str, int] = {}
    for key, own in module.state_dict().items():
        value = fit.state.get(key)
        if value is None or value.dtype == own.dtype:
            continue
        text = f"{_short(value.dtype)} -> {_short(own.dtype)}"
        converted = value.to(own.dtype)
        lost = value.isfinite() & ~converted.isfinite()
        if value.is_floating_point() != own.is_floating_point():
            lost = converted.to(value.dtype) != value if value.numel() == 1 else torch.tensor(True)
        if lost.any():
            raise ValueError(
                f"{type(module).__name__}: {fit.origin.get(key, key)} does not survive {text}; "
                "give the module the dtype of the weights first"
            )
        casts[text] = casts.get(text, 0) + 1
    return casts


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _listed(items: list[str]) -> str:
    rest = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(items[:_LISTED]) + rest
