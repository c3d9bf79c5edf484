"""Visual attention and convolution blocks, and tools that graft them into models.

Importing this package imports torch and the rooms `ops`, `blocks` and `surgery`; everything that
needs another library is loaded when it is first touched.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from visgraft import blocks, ops, surgery
from visgraft._version import __version__
from visgraft.blocks import (
    block_info,
    create_block,
    list_blocks,
    load_published,
    register_block,
)
from visgraft.surgery import apply_plan, find_sites, graft

if TYPE_CHECKING:
    from visgraft import inspect, models
    from visgraft.inspect import attention_maps, cost, export, fuse, measure
    from visgraft.tasks.saving import load, save

__all__ = [
    "__version__",
    "apply_plan",
    "attention_maps",
    "block_info",
    "blocks",
    "cost",
    "create_block",
    "export",
    "find_sites",
    "fuse",
    "graft",
    "inspect",
    "list_blocks",
    "load",
    "load_published",
    "measure",
    "models",
    "ops",
    "register_block",
    "save",
    "surgery",
]

_LAZY = {
    "attention_maps": ("visgraft.inspect", "attention_maps"),
    "cost": ("visgraft.inspect", "cost"),
    "export": ("visgraft.inspect", "export"),
    "fuse": ("visgraft.inspect", "fuse"),
    "inspect": ("visgraft.inspect", None),
    "load": ("visgraft.tasks.saving", "load"),
    "measure": ("visgraft.inspect", "measure"),
    "models": ("visgraft.models", None),
    "save": ("visgraft.tasks.saving", "save"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'visgraft' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    value = (
        import_module(module) if attribute is None else getattr(import_module(module), attribute)
    )
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
