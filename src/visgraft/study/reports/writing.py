"""Writes what a study found into its folder, and tells it to a terminal."""

import io
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from visgraft.study.errors import StudyError
from visgraft.study.measuring.cost import MeasuredCost
from visgraft.study.reports import numbers
from visgraft.study.reports.costs import measured_where
from visgraft.study.reports.data import StudyData, from_store, summarise
from visgraft.study.reports.files import BADGES, render_csv, render_markdown, render_trials_csv
from visgraft.study.reports.page import render_html
from visgraft.study.store import Store
from visgraft.tasks.files import write_atomically

__all__ = ["report", "study_data", "terminal_table"]


def study_data(folder: str | Path) -> StudyData:
    """Reads the facts of a study, finished or not, from its folder.

    Raises:
        StudyError: The folder holds no study, or one that cannot be read.
    """
    return from_store(Store.open(folder))


def report(folder: str | Path) -> Path:
    """Writes report.html, report.md, report.csv and trials.csv into a study's folder.

    May be called at any time, also while the study runs; each file is replaced as a whole.

    Args:
        folder: Of the study.

    Returns:
        The path of report.html.

    Raises:
        StudyError: The folder holds no study, or one that cannot be read, or is not writable.
    """
    folder = Path(folder)
    summary = summarise(study_data(folder))
    contents = {
        "trials.csv": render_trials_csv(summary),
        "report.csv": render_csv(summary),
        "report.md": render_markdown(summary),
        "report.html": render_html(summary),
    }
    try:
        for name, text in contents.items():
            write_atomically(folder / name, text.encode())
    except OSError as error:
        raise StudyError(f"report: {folder} cannot be written to: {error}.") from error
    return folder / "report.html"


def terminal_table(data: StudyData) -> str:
    """Returns the verdict table and the outcome in one sentence, as plain text."""
    summary = summarise(data)
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("network", no_wrap=True)
    known = data.known_metrics
    besides = [name for name in known.first if name in summary.others]
    labels = [known.metrics[name].label for name in besides]
    for title in (summary.metric.label, *labels, "difference [95 %]", "p (Holm)"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    latency = ("latency",) if data.measured else ()
    for title in ("params", "MACs", *latency, "time"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in summary.rows:
        c = row.comparison
        compared = ("", "", "")
        if c is not None:
            difference = numbers.interval(c.mean, c.low, c.high)
            compared = (difference, numbers.p_value(c.p_holm), BADGES[c.verdict].text)
        table.add_row(
            row.name,
            numbers.value(row.mean),
            *(numbers.value(summary.others[name][row.name].mean) for name in besides),
            *compared,
            numbers.quantity(row.params),
            numbers.quantity(row.macs),
            *(_latency(row.measured) for _ in latency),
            numbers.duration(row.seconds),
        )
    stream = io.StringIO()
    Console(file=stream, width=400, color_system=None, markup=False).print(table)
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    alarms = [f"Not fair, do not trust the verdict: {c.finding}" for c in summary.unfair]
    where = measured_where(data)
    against = [f"{c.variant} against {control}: {c.statement}." for control, c in summary.against]
    costs_of = [f"Latency: the median call of one image. {where}"] if where else []
    told = [*alarms, *costs_of, summary.progress, summary.headline, *against]
    return "\n".join([*lines, "", *told])


def _latency(cost: MeasuredCost | None) -> str:
    """Returns the median latency of one image."""
    return numbers.latency(cost.latencies[0].p50 if cost else None)
