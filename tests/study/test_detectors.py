"""A study of detectors, from its file to its report."""

import pytest
import torch
import yaml

from visgraft.data.detection import load_detection
from visgraft.study import matching, widening
from visgraft.study.deciding import check_metric
from visgraft.study.errors import StudyError
from visgraft.study.execution import run_study
from visgraft.study.matching import find_widths
from visgraft.study.plan import load_study, trials
from visgraft.study.pricing import count_parameters, counted_part
from visgraft.study.reports.data import summarise
from visgraft.study.reports.writing import report, study_data, terminal_table
from visgraft.study.store import Store
from visgraft.tasks.building import build_model

RECIPE = {
    "task": "instance_segmentation",
    "data": "fashion_scenes",
    "train_limit": 6,
    "val_limit": 2,
    "model": "resnet10t",
    "model_args": {"channels": [8, 16, 16, 32], "zero_init_last": False},
    "detector_args": {
        "channels": 16,
        "box_channels": 32,
        "mask_channels": [16],
        "box_batch_size_per_image": 16,
        "rpn_post_nms_top_n_train": 50,
        "rpn_post_nms_top_n_test": 20,
    },
    "min_size": 64,
    "max_size": 96,
    "epochs": 1,
    "batch_size": 2,
    "lr": 0.01,
    "loggers": "none",
    "device": "cpu",
}
CA = {"block": "coord_attention", "at": "block_end"}


def study(**fields):
    return load_study({"recipe": RECIPE, "variants": {"ca": CA}, "seeds": 1} | fields)


def boxes_alone(**fields):
    return RECIPE | {"task": "detection", "detector_args": {"channels": 16}} | fields


@pytest.fixture(scope="module")
def data():
    return load_detection("fashion_scenes", train_limit=6, val_limit=2)


def test_metric_is_the_tasks_own():
    assert study().metric == "mask_AP"
    assert study(recipe=boxes_alone()).metric == "AP"
    assert study(metric="AP_S").metric == "AP_S"
    plan = study(metric="mask_AP50")
    assert load_study(yaml.safe_load(yaml.safe_dump(plan.model_dump(mode="json")))) == plan


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"metric": "top1"}, r"metric: must be one of mask_AP, .*\(instance_segmentation\), got"),
        ({"metric": "maskAP"}, "got 'maskAP'; did you mean mask_AP"),
        ({"recipe": boxes_alone(), "metric": "mask_AP"}, r"AP_L \(detection\), got 'mask_AP'"),
        ({"recipe": {"base": "cpu_small"}, "metric": "AP"}, r"loss \(classification\), got 'AP'"),
    ],
)
def test_metrics_of_another_task_are_refused(fields, text):
    with pytest.raises(StudyError, match=text):
        study(**fields)


def test_metric_without_objects_cannot_decide(data):
    check_metric(study(metric="AP_M"), data)
    check_metric(study(metric="mask_AP"), data)
    with pytest.raises(StudyError) as raised:
        check_metric(study(metric="AP_L"), data)
    assert str(raised.value) == (
        "study study: the metric AP_L cannot decide, because no object in the validation images "
        "of fashion_scenes has more than 96 x 96 pixels; choose another one, such as AP."
    )


def test_that_is_said_before_anything_is_trained(tmp_path):
    with pytest.raises(StudyError, match="AP_L cannot decide"):
        run_study(study(metric="AP_L"), tmp_path, workers=0, progress=False)
    assert not (tmp_path / "trials").exists()


def test_widened_backbone_matches_backbone_and_pyramid(data, monkeypatch):
    """Not the whole detector, in whose heads a block's parameters would be lost."""
    targets = []

    def widen(model, arguments, target, measure):
        targets.append(target)
        return widening.widen(model, arguments, target, measure)

    monkeypatch.setattr(matching, "widen", widen)
    recipe = RECIPE | {"detector_args": {"channels": 16}}
    variants = {"ca": CA | {"at": "stage4/block_end"}}
    plan = study(recipe=recipe, variants=variants, controls=["widened"])
    models = {
        spec.variant: build_model(spec.recipe, data)[0] for spec in trials(find_widths(plan, data))
    }
    sizes = {n: count_parameters(counted_part(m, plan.recipe)) for n, m in models.items()}
    assert targets == [sizes["ca"]]
    assert sizes["widened_ca"] == pytest.approx(sizes["ca"], rel=0.01)
    assert sizes["widened_ca"] > sizes["baseline"]
    assert 20 * sizes["baseline"] < count_parameters(models["baseline"])


def test_shipped_study_grafts_where_gcnet_does(data):
    baseline, variant, *_ = trials(load_study("scenes"))
    assert baseline.recipe.grafts == ()
    with torch.device("meta"):
        _, (graft,) = build_model(variant.recipe, data)
    assert [site.path for site in graft.sites] == ["layer2.0.bn2", "layer3.0.bn2", "layer4.0.bn2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detectors")
    result = run_study(
        study(controls=["identity", "widened"]), folder, workers=0, threads=1, progress=False
    )
    assert [(t.status, t.error) for t in result.trials] == [("finished", None)] * 4
    return folder


def test_identity_control_of_a_detector_is_the_baseline(finished):
    found = {t.variant: t for t in Store.open(finished).trials()}
    results = {
        name: {k: v for k, v in trial.result.items() if k != "seconds"}
        for name, trial in found.items()
    }
    assert results["identity_ca"] == results["baseline"]
    assert results["ca"]["train_loss"] != results["baseline"]["train_loss"]
    assert found["identity_ca"].params == found["ca"].params > found["baseline"].params
    assert found["ca"].init_digest == found["baseline"].init_digest
    assert found["widened_ca"].init_digest != found["baseline"].init_digest
    assert found["widened_ca"].macs > found["baseline"].macs


def test_report_of_detectors(finished):
    data = study_data(finished)
    assert data.macs_of == "backbone and pyramid, one image of 64 x 64 pixels"
    assert (data.task, data.metric) == ("instance_segmentation", "mask_AP")
    summary = summarise(data)
    assert [check.passed for check in summary.checks if check.name == "Same start"] == [True]
    small = summary.others["AP_S"]["baseline"].mean
    assert small == data.trials[0].metrics["AP_S"]
    page = report(finished).read_text(encoding="utf-8")
    assert "box AP_S" in page
    assert "mask AP" in terminal_table(data).splitlines()[0]
