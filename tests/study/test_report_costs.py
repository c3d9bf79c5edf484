"""The metric against what networks cost, counted and measured."""

import json
import re
from dataclasses import replace

import pytest

from tests.study.made_up_costs import ENVIRONMENT, cost
from tests.study.made_up_study import made_up
from visgraft.study.reports.costs import measured_where
from visgraft.study.reports.data import summarise
from visgraft.study.reports.plots import build_plots
from visgraft.study.reports.writing import terminal_table

MIB = 1 << 20
COSTS = {"baseline": cost(2.0, 4 * MIB), "up": cost(3.0, 6 * MIB), "same": cost(2.5, 3 * MIB)}


def study(**changes):
    facts = {"environments": [ENVIRONMENT], "measured_on": ENVIRONMENT}
    facts |= {"measured": COSTS, "measured_of": "the whole network, images of 8 x 8 pixels"}
    return made_up(**facts | changes)


def plots_of(data):
    return {plot.name: plot for plot in build_plots(summarise(data))}


def test_figures_reach_the_rows():
    assert [row.measured for row in summarise(study()).rows] == list(COSTS.values())
    assert [row.measured for row in summarise(made_up()).rows] == [None] * 3


def test_plots_against_measured_cost_follow_those_against_counts():
    assert list(plots_of(study())) == [
        *("differences", "against-params", "against-macs", "against-latency", "against-memory"),
        *("curves-top1", "curves-train_loss"),
    ]
    assert "against-latency" not in plots_of(made_up())


def test_latency_has_a_bar_towards_slower():
    plot = plots_of(study())["against-latency"]
    front, *traces = json.loads(plot.figure)["data"]
    assert front["x"] == pytest.approx([2.0, 3.0])  # ms; same costs more than the baseline
    assert front["y"] == [90.75, 92.75]
    means = {trace["name"]: trace for trace in traces if "name" in trace}
    assert means["up"]["x"] == pytest.approx([3.0])
    bar = means["up"]["error_x"]
    assert not bar["symmetric"]
    assert bar["array"] == pytest.approx([1.5])
    assert bar["arrayminus"] == [0.0]
    low, high = json.loads(plot.figure)["layout"]["xaxis"]["range"]
    assert low < 2.0
    assert high > 4.5
    assert "92.75 with 3.00 ms, on the Pareto front" in means["up"]["hovertemplate"]
    header = ("Network", "Ms for one image", "95 % of calls", "Batch of 8", "Images/s")
    assert plot.header[:5] == header
    assert plot.rows[1] == (
        "up", "3.00 ms", "4.50 ms", "12.0 ms", "667", "92.75", "yes"
    )  # fmt: skip
    assert plot.rows[2][-1] == "no"


def test_memory_of_training_has_a_front_of_its_own():
    plot = plots_of(study())["against-memory"]
    front, *traces = json.loads(plot.figure)["data"]
    assert front["x"] == pytest.approx([3.0, 6.0])  # MiB; the baseline needs more than same
    assert all("error_x" not in trace for trace in traces)
    assert plot.header[2] == "Inference"
    assert plot.rows[0] == ("baseline", "4.00 MiB", "2.00 MiB", "90.75", "no")
    assert "without the optimizer's state" in plot.caption


def test_network_that_was_not_measured_is_named():
    data = study(
        measured={name: COSTS[name] for name in ("baseline", "same")},
        unmeasured={"up": "OutOfMemoryError: 7 GiB"},
    )
    plot = plots_of(data)["against-latency"]
    assert [row[0] for row in plot.rows] == ["baseline", "same"]
    assert "up is not measured: OutOfMemoryError: 7 GiB." in plot.caption
    table = terminal_table(data)
    assert "up is not measured: OutOfMemoryError: 7 GiB." in table
    (line,) = (line for line in table.splitlines() if line.startswith("up "))
    assert re.search(r"11\.0 M +– +61\.5 s$", line)  # noqa: RUF001
    nothing = study(measured={}, unmeasured={"up": "why"})
    assert "against-latency" not in plots_of(nothing)
    assert measured_where(nothing) == "up is not measured: why."
    assert "up is not measured: why." in terminal_table(nothing)


def test_figures_name_their_machine():
    where = "Measured in turns on A processor (cpu, 1 thread, float32): the whole network, "
    assert measured_where(study()) == f"{where}images of 8 x 8 pixels."
    assert measured_where(made_up()) == ""
    moved = study(environments=[ENVIRONMENT, {"cpu": "B", "gpu": "G"}, {"cpu": "C"}])
    assert measured_where(moved).endswith(
        "pixels. Trials also ran on C and G, where these figures do not hold."
    )
    on_cpu = replace(moved, recipe={"device": "cpu"})
    assert "Trials also ran on B and C, where" in measured_where(on_cpu)
    for name in ("against-latency", "against-memory"):
        assert where in plots_of(study())[name].caption


def test_disturbed_figures_are_told():
    assert "too long" not in measured_where(study(measured_share=0.97))
    told = measured_where(study(measured_share=0.6))
    assert "the calls waited 40 % of their time for a processor: latencies are too long" in told
    assert told in terminal_table(study(measured_share=0.6))


def test_terminal_has_a_column_of_latency():
    lines = terminal_table(study()).splitlines()
    assert re.split(r"  +", lines[0])[-4:] == ["params", "MACs", "latency", "time"]
    assert re.search(r"11\.0 M +3\.00 ms +61\.5 s$", lines[3])
    assert "latency" not in terminal_table(made_up())


def test_networks_that_cost_and_are_worth_the_same_share_the_front():
    data = study(measured={"baseline": cost(2.0), "same": cost(2.0)})
    plot = plots_of(data)["against-latency"]
    assert [row[-1] for row in plot.rows] == ["yes", "yes"]
    assert json.loads(plot.figure)["data"][0]["x"] == pytest.approx([2.0, 2.0])
