"""What a graft did, as rows and as text."""

from collections.abc import Sequence
from dataclasses import dataclass

from visgraft.surgery.sites import Site

__all__ = ["GraftRow", "Totals", "amount", "summary_line", "table_of"]


@dataclass(frozen=True)
class GraftRow:
    """What was done at one site.

    Attributes:
        site: Where.
        how: ``'replace'``, ``'after'`` or ``'parallel'``.
        key: Name of the new module; its tensors in the state dict begin with it.
        params: Parameters added; those of a replaced layer are subtracted.
        macs: Multiply-accumulate operations added, on the example.
        kept: How many of the layer's tensors have the name and the value they had.
        tensors: How many tensors the layer had.
        notes: What is particular about this site.
    """

    site: Site
    how: str
    key: str
    params: int
    macs: int
    kept: int
    tensors: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Totals:
    """Of the whole model, before and after.

    Attributes:
        kept: Tensors of the state dict that have the name and the value they had.
        tensors: Tensors of the state dict before.
        new: Tensors of the state dict that were not there before.
        params: Parameters before and after.
        macs: Multiply-accumulate operations on the example before and after.
    """

    kept: int
    tensors: int
    new: int
    params: tuple[int, int]
    macs: tuple[int, int]


def table_of(rows: Sequence[GraftRow], skipped: Sequence[tuple[str, str]]) -> str:
    """Returns the rows as a text table, then one line per site that was skipped."""
    head = ("path", "kind", "stage", "how", "channels", "map", "parameters", "MACs", "kept", "")
    cells = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.rjust(w) if 4 <= i <= 8 else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    rule = "-" * max(len(line) for line in lines)
    left_out = [f"skipped {path}: {reason}" for path, reason in skipped]
    return "\n".join([lines[0], rule, *lines[1:], *left_out])


def summary_line(totals: Totals, difference: float | None) -> str:
    """Returns what happened to the model in one line."""
    params, macs = (
        f"{amount(before)} -> {amount(after)}{_percent(before, after)}"
        for before, after in (totals.params, totals.macs)
    )
    text = f"{totals.kept} of {totals.tensors} tensors kept, {totals.new} new; "
    text += f"parameters {params}; MACs {macs}"
    return text if difference is None else f"{text}; max difference {difference:.3g}"


def amount(number: int) -> str:
    """Returns a count in three digits and a unit."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if abs(number) >= 0.9995 * size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _cells(row: GraftRow) -> tuple[str, ...]:
    site = row.site
    channels = f"{site.in_channels} -> {site.out_channels}"
    return (
        site.path,
        site.kind,
        str(site.stage),
        row.how,
        channels if site.in_channels != site.out_channels else str(site.out_channels),
        f"{site.feature_size[0]} x {site.feature_size[1]}",
        _signed(row.params),
        _signed(row.macs),
        f"{row.kept} of {row.tensors}",
        "; ".join(row.notes),
    )


def _signed(number: int) -> str:
    return f"+{amount(number)}" if number > 0 else amount(number)


def _percent(before: int, after: int) -> str:
    return f" ({100 * (after - before) / before:+.1f} %)" if before else ""
