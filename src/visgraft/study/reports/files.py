"""The report as Markdown and as CSV, and what all text forms share."""

import csv
import io
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from visgraft._version import __version__
from visgraft.study.reports.costs import measured_where
from visgraft.study.reports.data import StudyData, Summary
from visgraft.study.reports.measured import (
    large_batch,
    measured_header,
    measured_numbers,
)
from visgraft.study.reports.others import Other, others_table
from visgraft.study.reports.seeds import LISTED, seed_rows
from visgraft.study.reports.texts import templates
from visgraft.study.statistics import Verdict

__all__ = [
    "BADGES",
    "Badge",
    "render",
    "render_csv",
    "render_markdown",
    "render_trials_csv",
]

_EXTRAS = {"classification": "train", "detection": "detect", "instance_segmentation": "detect"}
"""What brings the packages of a task."""
_TESTS = ("p_t", "p_permutation", "p_holm", "effect", "detectable")


class Badge(NamedTuple):
    """A verdict at a glance: a CSS class, and two words with a sign that needs no colour."""

    style: str
    text: str


BADGES: Mapping[Verdict, Badge] = {
    Verdict.BETTER: Badge("better", "▲ better"),
    Verdict.WORSE: Badge("worse", "▼ worse"),
    Verdict.NO_EVIDENCE: Badge("unclear", "≈ no evidence"),
    Verdict.NO_STATEMENT: Badge("silent", "… no statement"),
}


def render_markdown(summary: Summary) -> str:
    """Returns the report without its plots, as GitHub shows it."""
    return render("report.md.j2", summary, for_html=False)


def render_csv(summary: Summary) -> str:
    """Returns a line per network; numbers unrounded, empty where there is none."""
    header = (
        *("network", "changes", "verdict", "metric", "seeds", "mean", "sd"),
        *("difference", "difference_sd", "difference_low", "difference_high"),
        *_TESTS,
        *("params", "macs", "seconds"),
        *measured_header(summary),
        *summary.others,
    )
    lines: list[tuple[object, ...]] = []
    for row in summary.rows:
        c = row.comparison
        compared: tuple[object, ...] = (None,) * (4 + len(_TESTS))
        if c is not None:
            compared = (c.mean, c.sd, c.low, c.high, *(getattr(c, name) for name in _TESTS))
        verdict = "baseline" if c is None else str(c.verdict)
        lines.append(
            (
                *(row.name, row.changes, verdict, summary.data.metric, len(row.values)),
                *(row.mean, row.sd),
                *compared,
                *(row.params, row.macs, row.seconds),
                *measured_numbers(summary, row.measured),
                *(_finite(networks[row.name]) for networks in summary.others.values()),
            )
        )
    return _csv(header, lines)


def render_trials_csv(summary: Summary) -> str:
    """Returns a line per trial: what the statistics are computed from."""
    value = summary.data.metric
    header = ("network", "seed", "status", value, "epochs", "seconds", "params", "macs")
    digests = ("init_digest", "order_digest")
    return _csv(
        (*header, *digests, *summary.others),
        (
            (
                *(t.variant, t.seed, t.status, t.value, t.epochs, t.seconds, t.params, t.macs),
                *(t.init_digest, t.order_digest),
                *(_finite(Other(t.metrics.get(name))) for name in summary.others),
            )
            for t in summary.data.trials
        ),
    )


def render(template: str, summary: Summary, *, for_html: bool, **more: Any) -> str:
    """Fills a template of this package.

    Args:
        template: Its file.
        summary: What to report.
        for_html: Whether texts are escaped for HTML.
        more: Further variables of the template.
    """
    return (
        templates(for_html)
        .get_template(template)
        .render(
            summary=summary,
            data=summary.data,
            metric=summary.metric,
            baseline=summary.rows[0],
            others=others_table(summary),
            measured=bool(summary.data.measured),
            measured_where=measured_where(summary.data),
            batch=large_batch(summary),
            seed_rows=seed_rows(summary.data),
            listed_seeds=LISTED,
            seeds=len(summary.data.seeds),
            badges=BADGES,
            commands=_commands(summary.data),
            version=__version__,
            now=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            **more,
        )
    )


def _commands(data: StudyData) -> list[str]:
    """What to type to get the same numbers."""
    packages = []
    if data.environments:
        facts = data.environments[0]
        for name in ("visgraft", "torch", "torchvision", "timm", "pytorch-lightning"):
            if name in facts:
                version = str(facts[name]).partition("+")[0]
                extra = f"[{_EXTRAS[data.task]}]" if name == "visgraft" else ""
                packages.append(f"'{name}{extra}=={version}'")
    folder = shlex.quote(data.folder)
    return [
        *([f"python -m pip install {' '.join(packages)}"] if packages else ()),
        f"visgraft study run study.yaml --folder {folder}",
        f"visgraft study report {folder}",
    ]


def _finite(other: Other) -> float | None:
    """A mean for a file of numbers; nothing where there is none."""
    return None if other.mean is None or math.isnan(other.mean) else other.mean


def _csv(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return stream.getvalue()
