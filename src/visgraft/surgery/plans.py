"""Repeats a graft from its plan, in another process and before a checkpoint is loaded."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from torch import nn

from visgraft.surgery._draft import Order, check_order
from visgraft.surgery._execution import carry_out
from visgraft.surgery._plan_format import Plan, read_plans
from visgraft.surgery.graft import Graft
from visgraft.surgery.sites import Site, Survey, survey

__all__ = ["apply_plan"]


def apply_plan(
    model: nn.Module, plan: Plan | list[Plan] | str | PathLike[str], *, example: Any = None
) -> list[Graft]:
    """Grafts ``model`` as a plan says, so that a checkpoint of the grafted model fits it.

    Args:
        model: A model built as the one was from which the plan was taken.
        plan: What :attr:`Graft.plan` gave, or a list of such plans in the order of the grafts; as
            Python data, as JSON text, or the path of a JSON file.
        example: What the model is called with, where that is neither one tensor nor the default.

    Returns:
        The grafts, in the order of the plans.

    Raises:
        ValueError: The plan is damaged, of another version, or does not fit the model; the model
            is then as it was.

    Example:
        >>> from visgraft.surgery import graft
        >>> net = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU())
        >>> plan = graft(net, "global_context", "0", example=(1, 3, 16, 16)).plan
        >>> twin = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU())
        >>> _ = apply_plan(twin, plan)
        >>> twin.load_state_dict(net.state_dict())
        <All keys matched successfully>
    """
    plans = read_plans(plan)
    done: list[Graft] = []
    try:
        for one in plans:
            done.append(_apply(model, one, example))
    except BaseException:
        for earlier in reversed(done):
            earlier.undo()
        raise
    return done


def _apply(model: nn.Module, plan: Plan, example: Any) -> Graft:
    order = Order(plan["block"], plan["how"], plan["start"], plan["options"])
    check_order("apply_plan", order)
    if example is None and plan["example"] is not None:
        example = tuple(plan["example"])
    found = survey("apply_plan", model, example)
    done = Graft(
        model, carry_out("apply_plan", model, order, found, lambda s: _sites(s, plan["sites"]))
    )
    for planned, made in zip(plan["sites"], done.plan["sites"], strict=True):
        different = [name for name in made if planned.get(name) != made[name]]
        if different:
            done.undo()
            said = ", ".join(f"{name} {planned.get(name)!r}" for name in different)
            here = ", ".join(f"{name} {made[name]!r}" for name in different)
            raise ValueError(
                f"apply_plan: at {made['path']} the plan says {said}, here it is {here}"
            )
    return done


def _sites(found: Survey, planned: Sequence[Mapping[str, Any]]) -> list[Site]:
    sites = []
    for entry in planned:
        same = (s for s in found.sites if (s.path, s.kind) == (entry["path"], entry["kind"]))
        site = next(same, None) or found.at_path(entry["path"])
        if site is None:
            raise ValueError(
                f"apply_plan: the plan names the layer {entry['path']!r}, which this model does "
                "not have or does not call"
            )
        channels = [site.in_channels, site.out_channels]
        if channels != list(entry["channels"]):
            raise ValueError(
                f"apply_plan: {site.path} has {channels[0]} -> {channels[1]} channels, the plan "
                f"was made for {' -> '.join(map(str, entry['channels']))}"
            )
        sites.append(site)
    return sites
