"""The catalogue of blocks: name, role, aliases, paper and source."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args

from torch import nn

__all__ = [
    "BlockInfo",
    "Paper",
    "Role",
    "Source",
    "UnknownBlockError",
    "block_info",
    "create_block",
    "list_blocks",
    "nearest",
    "register_block",
]

Role = Literal["gate", "mixer", "downsample"]
BlockT = TypeVar("BlockT", bound=type[nn.Module])


@dataclass(frozen=True)
class Paper:
    """Where a block was published.

    Attributes:
        title: Of the paper.
        authors: Family names, or the first and "et al.".
        venue: Conference or journal, and year.
        url: Of the freely readable version.
    """

    title: str
    authors: str
    venue: str
    url: str


@dataclass(frozen=True)
class Source:
    """The published code a block is compared with.

    Attributes:
        repository: Its address.
        file: The file in it.
        commit: The commit that was read.
        licence: Of the repository, as an SPDX identifier; None where it states none.
    """

    repository: str
    file: str
    commit: str
    licence: str | None


@dataclass(frozen=True)
class BlockInfo:
    """What the catalogue knows of one block.

    Attributes:
        name: The name in configurations and on the command line.
        cls: The module class; its first parameter is the number of channels.
        role: ``'gate'`` keeps the shape and is put after a layer; ``'mixer'`` takes the place of
            a k x k convolution; ``'downsample'`` takes the place of a strided one.
        summary: What the block does, in one sentence.
        aliases: Other names, each with the options it presets.
        paper: Where the block was published.
        source: The code it is compared with.
    """

    name: str
    cls: type[nn.Module]
    role: Role
    summary: str
    aliases: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    paper: Paper | None = None
    source: Source | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The options of the class after the channels, with their defaults, in its order."""
        parameters = list(inspect.signature(self.cls).parameters.values())[1:]
        return {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD}

    @property
    def takes_any_option(self) -> bool:
        """Whether the class has ``**options`` of its own."""
        parameters = inspect.signature(self.cls).parameters.values()
        return any(p.kind is p.VAR_KEYWORD for p in parameters)


class UnknownBlockError(KeyError, ValueError):
    """No block has this name; the text gives the nearest names and what exists."""

    def __str__(self) -> str:
        """Returns the sentence itself; a KeyError would print it as a quoted string."""
        return str(self.args[0])


_BLOCKS: dict[str, BlockInfo] = {}
_ALIASES: dict[str, str] = {}


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Returns up to three of the known names that look most like ``name``, ignoring case."""
    by_lower = {k.lower(): k for k in known}
    return [by_lower[k] for k in get_close_matches(str(name).lower(), by_lower, n=3, cutoff=0.5)]


def register_block(
    name: str,
    *,
    role: Role,
    summary: str | None = None,
    aliases: Mapping[str, Mapping[str, Any]] | None = None,
    paper: Paper | None = None,
    source: Source | None = None,
) -> Callable[[BlockT], BlockT]:
    """Enters the decorated class in the catalogue.

    Args:
        name: The name in the catalogue.
        role: ``'gate'``, ``'mixer'`` or ``'downsample'``.
        summary: One sentence; by default the first of the class docstring.
        aliases: Other names, each with the options it presets.
        paper: Where the block was published.
        source: The code it is compared with.

    Raises:
        ValueError: The role is unknown, or a name is empty or taken by another class.

    Example:
        >>> @register_block("doubled", role="gate")
        ... class Doubled(nn.Module):
        ...     def __init__(self, channels): super().__init__()
        ...     def forward(self, x): return 2 * x
        >>> type(create_block("doubled", 8)).__name__
        'Doubled'
    """
    _check_role(role)
    presets = {alias: MappingProxyType(dict(o)) for alias, o in (aliases or {}).items()}

    def enter(cls: BlockT) -> BlockT:
        for wanted in (name, *presets):
            if not wanted:
                raise ValueError("register_block: a name must not be empty")
            owner = _BLOCKS.get(_ALIASES.get(wanted, wanted))
            if owner is not None and not _same_class(owner.cls, cls):
                by = owner.cls.__qualname__
                raise ValueError(f"register_block: the name {wanted!r} is taken by {by}")
        sentence = summary or (inspect.getdoc(cls) or cls.__name__).partition("\n")[0]
        _BLOCKS[name] = BlockInfo(
            name, cls, role, sentence, MappingProxyType(presets), paper, source
        )
        _ALIASES.update(dict.fromkeys(presets, name))
        return cls

    return enter


def block_info(name: str) -> BlockInfo:
    """Returns the entry of a block, found by its name or an alias.

    Raises:
        UnknownBlockError: No such block; the text has the nearest names and all that exist.
    """
    info = _BLOCKS.get(_ALIASES.get(name, name))
    if info is None:
        near = nearest(name, [*_BLOCKS, *_ALIASES])
        hint = f"nearest: {', '.join(near)}; " if near else ""
        raise UnknownBlockError(f"no block {name!r}; {hint}there are {', '.join(list_blocks())}")
    return info


def create_block(name: str, channels: int, **options: Any) -> nn.Module:
    """Builds a block.

    Args:
        name: A name of the catalogue, or an alias; options override what an alias presets.
        channels: Of the input.
        **options: Of the class.

    Raises:
        UnknownBlockError: No such block.
        ValueError: An option is unknown, or the class refuses the values.

    Example:
        >>> create_block("CoXtLayer", 32).groups
        2
    """
    info = block_info(name)
    options = {**info.aliases.get(name, {}), **options}
    for option in options:
        if option not in info.options and not info.takes_any_option:
            near = nearest(option, info.options)
            hint = f"nearest: {', '.join(near)}; " if near else ""
            raise ValueError(
                f"{info.name} has no option {option!r}; {hint}it takes {', '.join(info.options)}"
            )
    return info.cls(channels, **options)


def list_blocks(role: Role | None = None) -> list[str]:
    """Returns the names in the catalogue, sorted, of one role or of all.

    Raises:
        ValueError: The role is unknown.
    """
    if role is not None:
        _check_role(role)
    return sorted(name for name, info in _BLOCKS.items() if role in (None, info.role))


def _check_role(role: str) -> None:
    if role not in get_args(Role):
        raise ValueError(f"no role {role!r}; a block is one of {', '.join(get_args(Role))}")


def _same_class(old: type, new: type) -> bool:
    """Whether ``new`` is ``old`` defined again, as a notebook cell run twice does."""
    return (old.__module__, old.__qualname__) == (new.__module__, new.__qualname__)
