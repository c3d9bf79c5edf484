"""Plans as data: how a graft is written down, and what of a written plan can be believed."""

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from visgraft.surgery._execution import Outcome

__all__ = ["Plan", "read_plans", "write_plan"]

Plan = Mapping[str, Any]
FORMAT = "visgraft.graft"
VERSION = 1
FIELDS = {
    "block": str,
    "options": Mapping,
    "how": (str, type(None)),
    "start": str,
    "example": (list, tuple, type(None)),
    "sites": list,
}


def write_plan(outcome: Outcome) -> dict[str, Any]:
    """Returns a graft as a plan.

    Raises:
        ValueError: The block is a function, or an option is nothing that JSON can hold.
    """
    order = outcome.order
    if not isinstance(order.block, str):
        raise ValueError(
            f"Graft.plan: the block was made by {order.block!r}, which a plan cannot hold; "
            "register the block with register_block and graft it by its name"
        )
    try:
        options = json.loads(json.dumps(dict(order.options), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"Graft.plan: an option of {order.block} is not JSON: {error}") from error
    shape = outcome.example.only_shape
    return {
        "format": FORMAT,
        "version": VERSION,
        "block": order.block,
        "options": options,
        "how": order.how,
        "start": order.start,
        "example": None if shape is None else list(shape),
        "sites": [
            {
                "path": row.site.path,
                "kind": row.site.kind,
                "channels": [row.site.in_channels, row.site.out_channels],
                "how": row.how,
                "scaled": fitted.draft.scaled,
                "pool": None if fitted.draft.pool is None else list(fitted.draft.pool),
                "key": row.key,
            }
            for fitted, row in zip(outcome.fitted, outcome.rows, strict=True)
        ],
    }


def read_plans(plan: Plan | list[Plan] | str | PathLike[str]) -> list[Plan]:
    """Returns the plans in Python data, in JSON text or in a file; lists in options are tuples.

    Raises:
        ValueError: There is no plan, or it is damaged or of another version.
    """
    source: Any = plan
    name = "the plan"
    if isinstance(plan, (str, PathLike)):
        text = str(plan)
        if not text.lstrip().startswith(("{", "[")):
            name = text
            try:
                text = Path(text).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"apply_plan: cannot read {name}: {error}") from error
        try:
            source = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"apply_plan: {name} is not JSON: {error}") from error
    plans = source if isinstance(source, list) else [source]
    if not plans:
        raise ValueError(f"apply_plan: {name} is an empty list")
    return [_checked(one, name) for one in plans]


def _checked(plan: Any, name: str) -> Plan:
    if not isinstance(plan, Mapping) or plan.get("format") != FORMAT:
        raise ValueError(f"apply_plan: {name} is not the plan of a graft")
    if plan.get("version") != VERSION:
        raise ValueError(
            f"apply_plan: {name} has version {plan.get('version')!r}, this visgraft reads {VERSION}"
        )
    for field, kind in FIELDS.items():
        if field not in plan or not isinstance(plan[field], kind):
            raise ValueError(f"apply_plan: {field!r} of {name} is missing or of the wrong type")
    for site in plan["sites"]:
        if not isinstance(site, Mapping) or not {"path", "kind", "channels"} <= site.keys():
            raise ValueError(f"apply_plan: a site of {name} lacks its path, kind or channels")
    return {**plan, "options": {key: _tuples(v) for key, v in plan["options"].items()}}


def _tuples(value: Any) -> Any:
    """Returns ``value`` with the tuples that JSON made lists."""
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
