"""What a report says of detectors: their metrics, and those that do not exist."""

import csv
import io
import math
import re
from dataclasses import replace

import pytest

from tests.study.made_up_study import changed, made_up
from tests.study.test_report import figures_of, text_of
from visgraft.study.reports.data import summarise
from visgraft.study.reports.files import render_csv, render_markdown, render_trials_csv
from visgraft.study.reports.others import Other
from visgraft.study.reports.page import render_html
from visgraft.study.reports.writing import terminal_table
from visgraft.tasks.metric_names import TASK_METRICS, task_metrics

SIZE = "backbone and pyramid, an image of 128 x 160 pixels"


def detected(task="detection", metric="AP", count=12):
    """The made-up study, its numbers those of detectors; there are no large objects."""
    data = made_up(count, task=task, metric=metric, macs_of=SIZE)
    known = task_metrics(task).metrics
    trials = []
    for trial in data.trials:
        metrics = {}
        if trial.value is not None:
            metrics = dict.fromkeys(known, trial.value / 2)
            metrics |= {metric: trial.value, "AP_S": float(trial.seed)}
            metrics["AP_S"] += trial.variant == "up"
            del metrics["AP_L"]
        trials.append(replace(trial, metrics=metrics))
    curves = [
        (name, seed, epoch, {metric: m["top1"], "AP_S": 5.0, "train_loss": 1.0})
        for name, seed, epoch, m in data.curves
    ]
    return replace(data, trials=tuple(trials), curves=curves)


def test_other_metrics_are_means_and_paired_differences():
    others = summarise(detected()).others
    assert list(others) == ["AP50", "AP75", "AP_S", "AP_M", "AP_L"]
    assert others["AP_S"] == {"baseline": Other(1.5), "up": Other(2.5, 1.0), "same": Other(1.5, 0)}
    assert others["AP50"]["up"] == Other(46.375, 1.0)
    assert math.isnan(others["AP_L"]["up"].mean)
    assert others["AP_L"]["up"].difference is None


def test_differences_are_those_of_pairs_alone():
    data = changed(detected(), "baseline", 3, status="failed", value=None, metrics={})
    assert summarise(data).others["AP_S"]["up"] == Other(2.5, 1.0)
    assert summarise(data).others["AP_S"]["baseline"] == Other(1.0)
    assert summarise(detected(count=1)).others["AP_S"]["up"] == Other()


def test_page_shows_small_objects_and_says_what_is_not_there():
    page = render_html(summarise(detected()))
    text = text_of(page)
    assert "up 46.38 (+1.00) 46.38 (+1.00) 2.50 (+1.00) 46.38 (+1.00) none" in text
    assert "They do not decide and are not tested" in text
    assert "AP_S counts objects of less than 32 x 32 pixels" in text
    assert "up (+2.00 points [+1.87, +2.13])" in text
    assert f"Multiplications with addition, {SIZE}" in page
    assert list(figures_of(page)) == [
        *("differences", "against-params", "against-macs", "curves-AP", "curves-AP_S"),
        "curves-train_loss",
    ]
    assert "AP by epoch" in text
    assert "AP against parameters" in text
    assert "pip install 'visgraft[detect]==0.1.0'" in text


def test_instance_segmentation_tells_boxes_from_masks():
    summary = summarise(detected("instance_segmentation", "mask_AP"))
    assert summary.metric.label == "mask AP"
    text = text_of(render_html(summary))
    assert "Mask AP by epoch" in text
    assert "pip install 'visgraft[detect]==0.1.0'" in text
    assert "difference in mask AP, points" in render_html(summary)
    markdown = render_markdown(summary)
    head = next(line for line in markdown.splitlines() if line.startswith("| Network | mask"))
    assert head.split(" | ")[1:4] == ["mask AP50", "mask AP75", r"mask AP\_S"]
    assert r"box AP\_S" in head
    assert f"MACs: {SIZE}." in markdown
    lines = terminal_table(summary.data).splitlines()
    assert re.split(r"  +", lines[0])[1:4] == ["mask AP", "box AP", "box AP_S"]
    assert re.split(r"  +", lines[3])[1:4] == ["92.75", "46.38", "2.50"]


def test_files_have_a_column_for_each_metric():
    summary = summarise(detected())
    rows = list(csv.DictReader(io.StringIO(render_csv(summary))))
    assert (rows[1]["metric"], rows[1]["mean"], rows[1]["AP_S"]) == ("AP", "92.75", "2.5")
    assert rows[1]["AP_L"] == ""
    trials = list(csv.DictReader(io.StringIO(render_trials_csv(summary))))
    assert (trials[4]["AP"], trials[4]["AP_S"], trials[4]["AP_L"]) == ("93.1", "2.0", "")
    assert list(trials[0])[-5:] == ["AP50", "AP75", "AP_S", "AP_M", "AP_L"]


def test_classification_has_no_section_of_others():
    data = made_up()
    trials = tuple(replace(t, metrics={"top1": t.value, "top5": 99.0}) for t in data.trials)
    summary = summarise(replace(data, trials=trials))
    assert summary.others == {}
    assert "Other metrics" not in render_html(summary)
    assert "Other metrics" not in render_markdown(summary)


def test_metrics_of_the_tasks():
    assert {name: task.default for name, task in TASK_METRICS.items()} == {
        "classification": "top1", "detection": "AP", "instance_segmentation": "mask_AP",
    }  # fmt: skip
    for task in TASK_METRICS.values():
        assert {task.default, *task.shown, *task.first} <= set(task.metrics)
        assert task.metrics[task.default].higher_is_better
    assert not task_metrics("classification").metrics["loss"].higher_is_better
    with pytest.raises(ValueError, match=r"no task 'pose'; choose from classification, detection"):
        task_metrics("pose")
