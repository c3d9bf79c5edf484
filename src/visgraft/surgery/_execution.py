"""Carries out a graft that was ordered: fits all blocks, changes the model, verifies the change."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from visgraft._shapes import Example
from visgraft.surgery._draft import MisfitError, Order
from visgraft.surgery._fit import Fitted, fit
from visgraft.surgery._graftable import warn_if_rebuilt
from visgraft.surgery._operations import Insertion, Operation, Replacement
from visgraft.surgery._trace import Trace, trace
from visgraft.surgery.holders import After, Parallel
from visgraft.surgery.report import GraftRow, Totals
from visgraft.surgery.sites import Site, Survey

__all__ = ["Outcome", "carry_out"]


@dataclass(frozen=True)
class Outcome:
    """A graft that was made.

    Attributes:
        order: What was asked for.
        example: What the model was run on.
        fitted: The blocks.
        operations: The changes, one per block.
        rows: What the report says of each.
        skipped: Path and reason of the sites that were left out.
        totals: Of the whole model.
    """

    order: Order
    example: Example
    fitted: list[Fitted]
    operations: list[Operation]
    rows: list[GraftRow]
    skipped: list[tuple[str, str]]
    totals: Totals


def carry_out(
    owner: str,
    model: nn.Module,
    order: Order,
    found: Survey,
    choose: Callable[[Survey], list[Site]],
    *,
    strict: bool = True,
) -> Outcome:
    """Plans, makes and verifies a graft; on any exception the model is as it was.

    Raises:
        ValueError: The block does not fit, or is not reached once it is in the model; ``owner``
            complains.
    """
    fitted, skipped = _fit_all(owner, found, choose(found), order, strict)
    operations = [_operation(model, f) for f in fitted]
    before = _tensors(model)
    parameters = _count(model)
    applied: list[Operation] = []
    try:
        for operation in operations:
            operation.apply()
            applied.append(operation)
        after = _verified(owner, model, found.run, fitted, operations)
        state = _tensors(model)
        kept = {name for name, tensor in before.items() if _is_same(tensor, state.get(name))}
        rows = [
            _row(found.run, after, f, operation, before, kept)
            for f, operation in zip(fitted, operations, strict=True)
        ]
    except BaseException:
        for operation in reversed(applied):
            operation.revert()
        raise
    totals = Totals(
        kept=len(kept),
        tensors=len(before),
        new=len(state) - len(kept),
        params=(parameters, _count(model)),
        macs=(found.run.macs, after.macs),
    )
    warn_if_rebuilt(owner, model)
    return Outcome(order, found.run.example, fitted, operations, rows, skipped, totals)


def _fit_all(
    owner: str, found: Survey, sites: Sequence[Site], order: Order, strict: bool
) -> tuple[list[Fitted], list[tuple[str, str]]]:
    """Builds the blocks of all sites; returns them, and path and reason of the misfits."""
    fitted: list[Fitted] = []
    misfits: list[tuple[str, str]] = []
    for site in sites:
        try:
            one = fit(found, site, order)
        except MisfitError as misfit:
            misfits.append((site.path, str(misfit)))
            continue
        if one is not None:
            fitted.append(one)
    misfits += _conflicts(fitted)
    conflicting = {path for path, _ in misfits}
    fitted = [f for f in fitted if f.site.path not in conflicting]
    name = order.block if isinstance(order.block, str) else "the block"
    if misfits and (strict or not fitted):
        advice = "; strict=False leaves these out" if fitted else ""
        raise ValueError(
            f"{owner}: {name} does not fit at {len(misfits)} of {len(sites)} sites: "
            f"{_by_reason(misfits)}{advice}"
        )
    if not fitted:
        raise ValueError(f"{owner}: the function made no block at any of {len(sites)} sites")
    return fitted, misfits


def _conflicts(fitted: Sequence[Fitted]) -> list[tuple[str, str]]:
    """Returns path and reason of the sites that another one of the same graft rules out."""
    gone = [f.site.path for f in fitted if f.draft.how == "replace"]
    taken: dict[nn.Module, str] = {}
    found = []
    for f in fitted:
        path = f.site.path
        outer = next((p for p in gone if path.startswith(f"{p}.")), None)
        if outer is not None:
            found.append((path, f"is inside {outer}, which would be replaced"))
        elif f.layer in taken:
            found.append((path, f"gives the same map as {taken[f.layer]}"))
        taken.setdefault(f.layer, path)
    return found


def _by_reason(misfits: Sequence[tuple[str, str]]) -> str:
    paths: dict[str, list[str]] = {}
    for path, reason in misfits:
        paths.setdefault(reason, []).append(path)
    texts = []
    for reason, where in paths.items():
        more = f" and {len(where) - 6} more" if len(where) > 8 else ""
        texts.append(f"{', '.join(where[:6] if more else where)}{more} ({reason})")
    return "; ".join(texts)


def _operation(model: nn.Module, fitted: Fitted) -> Operation:
    block = fitted.draft.block
    if fitted.draft.how == "replace":
        return Replacement(model, fitted.layer, block, fitted.units)
    kind = After if fitted.draft.how == "after" else Parallel
    device, dtype = fitted.like
    channels = fitted.site.out_channels if fitted.draft.scaled else None
    holder = kind(block, channels, device=device, dtype=dtype)
    return Insertion(fitted.layer, fitted.home, holder.train(block.training), fitted.units)


def _verified(
    owner: str,
    model: nn.Module,
    before: Trace,
    fitted: Sequence[Fitted],
    operations: Sequence[Operation],
) -> Trace:
    """Runs the grafted model on shapes.

    Raises:
        ValueError: A block is not called as often as its layer was.
    """
    after = trace(owner, model, before.example)
    for f, operation in zip(fitted, operations, strict=True):
        path = next(iter(after.names.get(operation.new, ())), None)
        calls = len(after.calls.get(path, ())) if path is not None else 0
        expected = len(before.calls[f.site.path])
        if calls != expected:
            raise ValueError(
                f"{owner}: {f.site.path} is called {expected} times, but the block there would be "
                f"called {calls} times: the model does not reach that layer through its name, or "
                "runs its children one by one"
            )
    return after


def _row(
    before: Trace,
    after: Trace,
    fitted: Fitted,
    operation: Operation,
    state: Mapping[str, Tensor],
    kept: set[str],
) -> GraftRow:
    path = fitted.site.path
    own = [name for name in state if name.startswith(f"{path}.")]
    params, macs = _count(operation.new), fitted.macs
    if isinstance(operation, Replacement):
        params -= _count(before.modules[path])
        macs -= sum(call.macs for call in before.calls[path])
    return GraftRow(
        site=fitted.site,
        how=fitted.draft.how,
        key=after.names[operation.new][0],
        params=params,
        macs=macs,
        kept=sum(name in kept for name in own),
        tensors=len(own),
        notes=fitted.notes,
    )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _is_same(old: Tensor, new: Tensor | None) -> bool:
    """Whether a tensor of the state dict is still there with its values."""
    if new is old:
        return True
    if new is None or new.shape != old.shape:
        return False
    return old.is_meta or torch.equal(old, new)
