"""The comparison of two studies as text, Markdown and CSV."""

import csv
import io
from collections.abc import Callable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from visgraft.study.reports.comparing import SharedNetwork, StudyComparison
from visgraft.study.reports.data import Row
from visgraft.study.reports.numbers import NOTHING, interval, p_value, value
from visgraft.study.reports.texts import markdown_cell

__all__ = ["comparison_csv", "comparison_markdown", "comparison_text"]

_Writer = Callable[[Sequence[str], Sequence[Sequence[str]]], str]


def comparison_text(comparison: StudyComparison) -> str:
    """Returns the comparison for a terminal."""
    return "\n".join(_parts(comparison, _text_table, title=lambda words: words))


def comparison_markdown(comparison: StudyComparison) -> str:
    """Returns the comparison as GitHub shows it."""
    title = f"# {markdown_cell(comparison.a.data.name)} and {markdown_cell(comparison.b.data.name)}"
    parts = _parts(comparison, _markdown_table, title=lambda words: f"## {words}\n")
    return "\n".join([title, "", *parts, ""])


def comparison_csv(comparison: StudyComparison) -> str:
    """Returns a line per network of either study; numbers unrounded, empty where there is none."""
    header = (
        *("network", "network_b", "changes", "metric", "paired"),
        *(f"{what}_{study}" for study in "ab" for what in ("seeds", "mean", "sd", "gain")),
        *("pairs", "difference", "difference_low", "difference_high", "p", "p_holm", "words"),
    )
    metric, paired = comparison.a.data.metric, "yes" if comparison.paired else "no"
    lines: list[tuple[object, ...]] = [
        (
            *(n.a.name, n.b.name, n.a.changes, metric, paired),
            *(*_numbers(n.a), *_numbers(n.b)),
            *(len(n.seeds), n.difference, n.low, n.high, n.p, n.p_holm, n.words),
        )
        for n in comparison.networks
    ]
    empty = (None,) * 4
    rest = (*(None,) * 6, "only in one study")
    lines += [
        (row.name, None, row.changes, metric, None, *_numbers(row), *empty, *rest)
        for row in comparison.only_a
    ]
    lines += [
        (None, row.name, row.changes, metric, None, *empty, *_numbers(row), *rest)
        for row in comparison.only_b
    ]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return stream.getvalue()


def _parts(c: StudyComparison, table: _Writer, *, title: Callable[[str], str]) -> list[str]:
    """Returns the parts of the comparison, in the order in which a reader wants them."""
    label = c.metric.label
    lines = []
    for letter, study in (("A", c.a), ("B", c.b)):
        lines.append(f"{letter}: {study.data.name} ({study.data.folder}). {study.progress}")
        lines += [f"{letter} is not fair, do not trust it: {x.finding}" for x in study.unfair]
        lines.append("")
    lines.append(title("What differs"))
    if c.differing:
        rows = [(d.what, d.a, d.b, "yes" if d.decides else "no") for d in c.differing]
        lines.append(table(("what", "A", "B", "parts the seeds"), rows))
    else:
        lines.append("Nothing that was recorded.")
    lines += ["", title("Networks in both"), c.reason, ""]
    header = ("network", f"{label} A", f"{label} B", "B - A [95 %]", "p (Holm)", "B against A")
    gains = ("gain A", "gain B")
    lines.append(table((*header, *gains), [_network(n) for n in c.networks]))
    for letter, rows in (("A", c.only_a), ("B", c.only_b)):
        if rows:
            lines += ["", title(f"Only in {letter}")]
            only = [(r.name, r.changes, _mean(r), _gain(r)) for r in rows]
            lines.append(table(("network", "changes", label, "gain"), only))
    lines += [
        "",
        "Mean ± standard deviation over the seeds (their number). Gain: the mean paired difference "
        "to the baseline of the same study, with its 95 % interval.",
    ]
    return lines


def _network(n: SharedNetwork) -> tuple[str, ...]:
    name = n.a.name if n.a.name == n.b.name else f"{n.a.name} (B: {n.b.name})"
    difference = interval(n.difference, n.low, n.high)
    numbers = (_mean(n.a), _mean(n.b), difference, p_value(n.p_holm))
    return (name, *numbers, n.words, _gain(n.a), _gain(n.b))


def _mean(row: Row) -> str:
    if row.mean is None:
        return NOTHING
    spread = "" if row.sd is None else f" ± {value(row.sd)}"
    return f"{value(row.mean)}{spread} ({len(row.values)})"


def _gain(row: Row) -> str:
    c = row.comparison
    return "" if c is None else interval(c.mean, c.low, c.high)


def _numbers(row: Row) -> tuple[object, ...]:
    gain = row.comparison.mean if row.comparison else None
    return (len(row.values), row.mean, row.sd, gain)


def _text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for title in header:
        table.add_column(title, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    stream = io.StringIO()
    Console(file=stream, width=1000, color_system=None, markup=False).print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().rstrip().splitlines())


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(markdown_cell, line))} |" for line in lines)
