"""The report of a placement: a page with the map of the network, Markdown, a terminal table."""

import io
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from visgraft._version import __version__
from visgraft.study.errors import StudyError
from visgraft.study.placement.candidates import Candidate
from visgraft.study.placement.map import MAP_STYLES, Lane, draw_map
from visgraft.study.placement.placing import FINAL, Placement
from visgraft.study.placement.plan import PlacementPlan
from visgraft.study.placement.settings import RECIPE, SETTINGS
from visgraft.study.reports import numbers
from visgraft.study.reports.data import Row
from visgraft.study.reports.files import BADGES
from visgraft.study.reports.texts import resource, templates
from visgraft.study.statistics import Comparison
from visgraft.tasks.files import write_atomically
from visgraft.tasks.metric_names import Metric, task_metrics
from visgraft.tasks.recipe import dump_recipe

__all__ = ["PlaceRow", "place_rows", "plan_table", "render_page", "result_table", "write_report"]


@dataclass(frozen=True)
class PlaceRow:
    """A candidate with everything that was found out about it.

    Attributes:
        candidate: The place.
        reached: How far it came: ``final``, ``rung 1`` or empty.
        screened: Its comparisons with the baseline in the rungs; None where it was not in.
        final: Its row in the final study.
        lane: What the map says of it.
    """

    candidate: Candidate
    reached: str
    screened: tuple[Comparison | None, ...]
    final: Row | None
    lane: Lane


def place_rows(state: Placement) -> list[PlaceRow]:
    """Returns the candidates of a placement, in the order of the network."""
    finals = {row.name: row for row in state.final.rows} if state.final else {}
    rows = []
    for candidate in state.plan.candidates.found:
        screened = tuple(rung.comparisons.get(candidate.name) for rung in state.rungs)
        final = finals.get(candidate.name)
        entered = [i for i, c in enumerate(screened, 1) if c is not None]
        reached = FINAL if final else f"rung {entered[-1]}" if entered else ""
        lane = _lane(state, candidate, screened, final)
        rows.append(PlaceRow(candidate, reached, screened, final, lane))
    return rows


def write_report(state: Placement) -> None:
    """Writes place.html, place.md and place.svg into the folder of a placement.

    Raises:
        StudyError: It cannot be written to.
    """
    contents = {
        "place.svg": _map(state, place_rows(state), alone=True) + "\n",
        "place.md": _render("place.md.j2", state),
        "place.html": render_page(state),
    }
    try:
        for name, text in contents.items():
            write_atomically(state.folder / name, text.encode())
    except OSError as error:
        raise StudyError(f"place: {state.folder} cannot be written to: {error}.") from error


def render_page(state: Placement) -> str:
    """Returns the page, which needs nothing but a browser."""
    return _render("place.html.j2", state, for_html=True)


def result_table(state: Placement) -> str:
    """Returns the candidates and the outcome in one sentence, as plain text."""
    titles = ["place", *(f"rung {rung.rung.number}" for rung in state.rungs)]
    table = _table((*titles, "final [95 %]", "p (Holm)", "verdict", "params", "MACs"), text=(0, -3))
    excluded = []
    for row in place_rows(state):
        candidate, c = row.candidate, row.final.comparison if row.final else None
        if candidate.reason:
            excluded.append(f"{candidate.name} is not compared: {candidate.reason}.")
            continue
        table.add_row(
            candidate.name,
            *(numbers.signed(s.mean) if s else "" for s in row.screened),
            numbers.interval(c.mean, c.low, c.high) if c else "",
            numbers.p_value(c.p_holm) if c else "",
            BADGES[c.verdict].text if c else "screening only" if row.reached else "waiting",
            numbers.quantity(candidate.params),
            numbers.quantity(candidate.macs),
        )
    return "\n".join([_text(table), "", *excluded, *alarms(state), state.headline])


def plan_table(plan: PlacementPlan) -> str:
    """Returns the candidates with their price, and what would be trained, as plain text."""
    table = _table(("place", "where", "layers", "params", "", "MACs", ""), text=(0, 1))
    base = plan.candidates
    table.add_row(
        "baseline", "", "", numbers.quantity(base.params), "", numbers.quantity(base.macs), ""
    )
    for c in base.found:
        table.add_row(
            c.name,
            c.words,
            str(len(c.paths)),
            numbers.quantity(c.params),
            numbers.versus(c.params, base.params),
            numbers.quantity(c.macs),
            numbers.versus(c.macs, base.macs),
        )
    excluded = [f"{c.name} cannot be compared: {c.reason}." for c in base.found if c.reason]
    return "\n".join([_text(table), "", *excluded, *schedule(plan)])


def schedule(plan: PlacementPlan) -> list[str]:
    """Returns what is trained, a line per rung and one for the final study."""
    lines = [
        f"rung {r.number}: {r.candidates} places and the baseline, {r.epochs} "
        f"{'epoch' if r.epochs == 1 else 'epochs'}, {_seeds(r.seeds)}; {r.survivors} go on"
        for r in plan.rungs
    ]
    controls = f", controls {' and '.join(plan.controls)}" if plan.controls else ""
    lines.append(
        f"final: {plan.survivors} {'place' if plan.survivors == 1 else 'places'} and the baseline"
        f"{controls}, {plan.recipe.epochs} epochs, {_seeds(plan.seeds)}"
    )
    lines.append(
        f"in all {plan.total_epochs} epochs of training; all {len(plan.candidates.usable)} places "
        f"in the final study would take {plan.exhaustive_epochs}"
    )
    return lines


def alarms(state: Placement) -> list[str]:
    """Returns a sentence for each reason not to trust the numbers."""
    named = [(f"rung {rung.rung.number}", rung.summary) for rung in state.rungs]
    named += [("the final study", state.final)] if state.final else []
    return [
        f"Not fair, do not trust {name}: {check.finding}"
        for name, summary in named
        for check in summary.unfair
    ]


def _lane(
    state: Placement,
    candidate: Candidate,
    screened: Sequence[Comparison | None],
    final: Row | None,
) -> Lane:
    """Puts what is known of a candidate into the words of the map."""
    metric = metric_of(state.plan)
    where = f"{candidate.name} ({candidate.words})"
    c = final.comparison if final else None
    if candidate.reason:
        text = _shortened(candidate.reason, 38)
        told = f"{where}: not compared, {candidate.reason}."
        return _made(candidate, "✕ not compared", text, told, ("excluded",))
    if c is not None:
        badge = BADGES[c.verdict]
        number = f"{numbers.interval(c.mean, c.low, c.high)} {metric.unit}".rstrip()
        told = f"{where}: {c.statement}; difference {number}."
        styles = ("final", badge.style, _direction(c.mean, metric))
        return _made(candidate, badge.text, number, told, styles)
    rungs = [(r.rung, s) for r, s in zip(state.rungs, screened, strict=True) if s is not None]
    if not rungs:
        told = f"{where}: not trained yet."
        return _made(candidate, "… waiting", "not trained yet", told, ("screening",))
    rung, last = rungs[-1]
    direction = _direction(last.mean, metric)
    sign = {"gain": "△ ", "loss": "▽ "}.get(direction, "")
    seeds = f"{len(last.seeds)} {'seed' if len(last.seeds) == 1 else 'seeds'}"
    length = f"{rung.epochs} {'epoch' if rung.epochs == 1 else 'epochs'}"
    number = f"{sign}{numbers.signed(last.mean)} (rung {rung.number}: {length}, {seeds})"
    told = (
        f"{where}: screening only, {numbers.signed(last.mean)} {metric.unit} in rung "
        f"{rung.number} with {length} and {seeds}, no verdict."
    )
    return _made(candidate, "screening only", number, told, ("screening", direction))


def _made(
    candidate: Candidate, verdict: str, number: str, told: str, styles: tuple[str, ...]
) -> Lane:
    kept = tuple(style for style in styles if style)
    return Lane(candidate.name, verdict, number, told, candidate.blocks, kept)


def metric_of(plan: PlacementPlan) -> Metric:
    """Returns the metric that decides."""
    known = task_metrics(plan.recipe.task)
    return known.metrics[plan.metric or known.default]


def _direction(difference: float | None, metric: Metric) -> str:
    """Returns whether a difference is an improvement, by the number as it is shown."""
    shown = 0.0 if difference is None else round(difference, 2)
    if shown == 0:
        return ""
    return "gain" if (shown > 0) is metric.higher_is_better else "loss"


def _map(state: Placement, rows: Sequence[PlaceRow], *, alone: bool = False) -> str:
    lanes = [row.lane for row in rows]
    return draw_map(state.plan.candidates.network, lanes, title=state.plan.title, alone=alone)


def _render(template: str, state: Placement, *, for_html: bool = False) -> str:
    rows = place_rows(state)
    return (
        templates(for_html)
        .get_template(template)
        .render(
            state=state,
            plan=state.plan,
            rows=rows,
            map=_map(state, rows),
            metric=metric_of(state.plan),
            badges=BADGES,
            alarms=alarms(state),
            schedule=schedule(state.plan),
            commands=_commands(state),
            recipe=dump_recipe(state.plan.recipe),
            settings=SETTINGS,
            styles=f"{resource('report.css')}\n{MAP_STYLES}",
            script=resource("report.js"),
            version=__version__,
            now=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        )
    )


def _commands(state: Placement) -> list[str]:
    """Returns what to type to get the same numbers."""
    plan, wish = state.plan, state.plan.wish
    words = ["visgraft", "study", "place", wish.block, "--recipe", RECIPE]
    for patterns in plan.at:
        words += ["--at", ",".join(patterns)]
    for name, value in wish.options.items():
        words += ["--option", f"{name}={value!r}"]
    given = {
        "--how": wish.how,
        "--start": wish.start,
        "--seeds": len(plan.seeds),
        "--screening-seeds": len(plan.rungs[0].seeds) if plan.rungs else None,
        "--survivors": plan.survivors,
        "--eta": plan.eta,
        "--metric": plan.metric or None,
    }
    for option, value in given.items():
        words += [] if value is None else [option, str(value)]
    for control in plan.controls:
        words += ["--control", control]
    return [shlex.join([*words, "--folder", "runs/place_again"])]


def _table(titles: Sequence[str], *, text: Sequence[int]) -> Table:
    """Returns an empty table; the columns of ``text`` begin at the left."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    left = {index % len(titles) for index in text}
    for index, title in enumerate(titles):
        table.add_column(title, justify="left" if index in left else "right", no_wrap=True)
    return table


def _text(table: Table) -> str:
    stream = io.StringIO()
    Console(file=stream, width=400, color_system=None, markup=False).print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    return f"seeds {seeds[0]} to {seeds[-1]}"


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"
