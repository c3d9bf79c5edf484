import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml

from tests.study.made_up_study import made_up
from tests.study.tiny import recipe, study
from visgraft.data import load_data
from visgraft.study import matching
from visgraft.study.control import Control
from visgraft.study.errors import StudyError
from visgraft.study.execution import run_study
from visgraft.study.plan import load_study, trials
from visgraft.study.reports.data import summarise
from visgraft.study.reports.files import render_markdown
from visgraft.study.reports.writing import study_data, terminal_table
from visgraft.study.store import Store
from visgraft.tasks import load_trained

CA = {"block": "coord_attention", "at": "block_end"}
COT = {"block": "cot", "at": "layer4.*.conv2"}


def test_short_form_asks_for_one_of_each_for_every_variant():
    plan = study(
        variants={"ca": CA, "wide": {"model_args": {"channels": [8, 8, 8, 16]}}},
        controls=["widened", "identity"],
    )
    assert plan.controls == {
        "widened_ca": Control(kind="widened", of="ca"),
        "widened_wide": Control(kind="widened", of="wide"),
        "identity_ca": Control(kind="identity", of="ca"),
    }
    assert load_study(yaml.safe_load(yaml.safe_dump(plan.model_dump(mode="json")))) == plan
    assert study(controls="identity").controls == {"identity_ca": Control(kind="identity", of="ca")}
    assert study(controls=None).controls == study().controls == {}


def test_long_form_fills_in_what_is_beyond_doubt():
    plan = study(controls={"widened": None, "as_much": {"kind": "widened", "match": "macs"}})
    assert plan.controls["widened"] == Control(kind="widened", of="ca")
    assert plan.controls["widened"].measure == "parameters"
    assert plan.controls["as_much"].measure == "macs"
    two = study(variants={"ca": CA, "cot": COT}, controls={"identity": {"of": "cot"}})
    assert two.controls["identity"].of == "cot"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"controls": ["wider"]},
            "controls: there is no control 'wider'; choose from identity, wi",
        ),
        ({"controls": 3}, "controls: must be a list of identity and widened, or"),
        ({"controls": {"widened": 3}}, "widened must be settings such as"),
        ({"controls": {"plain": {"of": "ca"}}}, "controls.plain.kind: is required"),
        ({"controls": {"widened": {"of": "cb"}}}, "widened: there is no variant 'cb'"),
        ({"controls": {"widened": {"match": "size"}}}, "widened.match: must be one of parameters"),
        ({"controls": {"identity": {"match": "macs"}}}, "controls.identity: match is for widened"),
        ({"controls": {"ca": {"kind": "identity"}}}, "the name 'ca' is taken"),
        ({"controls": {"baseline": {"kind": "identity"}}}, "there is a .*'baseline'"),
        ({"variants": {"a": CA, "b": CA}, "controls": {"widened": {}}}, "widened.of: is required"),
        ({"variants": {"a": {"grafts": []}}, "controls": {"identity": {}}}, "no identity control"),
        ({"controls": ["widened"], "recipe": recipe(checkpoint="x.pth")}, "starts from trained we"),
    ],
)
def test_refusals(fields, text):
    with pytest.raises(StudyError, match=text):
        study(**fields)


def test_trials_of_controls_come_after_the_variants_of_each_seed():
    paper = {"paper": CA | {"start": "paper"}}
    plan = study(variants=paper, controls=["identity", "widened"], seeds=[3, 4])
    specs = trials(plan)
    names = ["baseline", "paper", "identity_paper", "widened_paper"]
    assert [(s.variant, s.seed) for s in specs] == [(n, seed) for seed in (3, 4) for n in names]
    _, variant, identity, widened = specs[:4]
    assert variant.recipe.grafts[0].learns
    (graft,) = identity.recipe.grafts
    assert (graft.learns, graft.start) == (False, "identity")
    assert widened.recipe.grafts == ()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("controls")
    plan = study(
        variants={"cot": COT},
        controls={"identity": None, "widened": {"match": "macs"}},
        recipe=recipe(model_args={"channels": [8, 8, 8, 8], "zero_init_last": False}, lr=0.01),
    )
    result = run_study(plan, folder, workers=0, threads=1, progress=False)
    assert [t.status for t in result.trials] == ["finished"] * 8
    return folder, plan


def test_identity_control_is_the_baseline_to_the_last_bit(finished):
    store = Store.open(finished[0])
    curves = {
        (name, seed, epoch): {k: v for k, v in metrics.items() if k != "seconds"}
        for name, seed, epoch, metrics in store.curves()
    }
    for seed in (0, 1):
        for epoch in (1, 2):
            assert curves["identity", seed, epoch] == curves["baseline", seed, epoch]
            assert curves["cot", seed, epoch] != curves["baseline", seed, epoch]
    size = {(t.variant, t.seed): t.params for t in store.trials()}
    assert size["identity", 0] == size["cot", 0] > size["baseline", 0]


def test_frozen_grafts_stay_frozen_in_what_goes_on_from_a_checkpoint(finished):
    store = Store.open(finished[0])
    learning = {}
    for name in ("baseline", "cot", "identity"):
        model = load_trained(store.trial_folder(name, 0) / "last.ckpt").model
        learning[name] = {n for n, p in model.named_parameters() if p.requires_grad}
    assert learning["identity"] == learning["baseline"] < learning["cot"]


def test_widened_control_matches_and_is_recorded(finished):
    folder, plan = finished
    store = Store.open(folder)
    macs = {t.variant: t.macs for t in store.trials()}
    assert macs["widened"] == pytest.approx(macs["cot"], rel=0.01)
    assert macs["widened"] != macs["baseline"]
    control = store.study.controls["widened"]
    assert plan.controls["widened"].is_open
    assert list(control.model_args) == ["channels"]
    text = render_markdown(summarise(study_data(folder)))
    channels = ", ".join(map(str, control.model_args["channels"]))
    assert f"resnet10\\_small widened to the MACs of cot: channels=\\[{channels}\\]" in text
    assert "**cot against widened**" in text
    assert "cot against widened: " in terminal_table(study_data(folder))


def test_found_width_is_kept_and_seeds_are_added(finished, monkeypatch):
    folder, plan = finished
    before = (folder / "study.sqlite").read_bytes()
    monkeypatch.setattr(matching, "widen", None)
    assert len(run_study(plan, folder, progress=False).finished) == 8
    assert (folder / "study.sqlite").read_bytes() == before
    other = plan.model_copy(
        update={"controls": plan.controls | {"widened": Control(kind="widened", of="cot")}}
    )
    with pytest.raises(StudyError, match=r"controls\.widened was .*'match': 'macs'"):
        run_study(other, folder, progress=False)


def test_store_without_controls_goes_on_and_takes_them(tmp_path):
    old = study(seeds=1, recipe=recipe(epochs=1))
    run_study(old, tmp_path, workers=0, threads=1, progress=False)
    store = Store.open(tmp_path)
    values = old.model_dump(mode="json", exclude={"controls": True})
    for graft in values["variants"]["ca"]["grafts"]:
        del graft["learns"]
    with store.transaction(write=True) as connection:  # as the version before controls wrote it
        connection.execute("UPDATE meta SET value = ? WHERE key = 'study'", (json.dumps(values),))
    more = study(seeds=1, recipe=recipe(epochs=1), controls=["identity"])
    result = run_study(more, tmp_path, workers=0, threads=1, progress=False)
    assert [(t.variant, t.attempts) for t in result.trials] == [
        ("baseline", 1), ("ca", 1), ("identity_ca", 1)
    ]  # fmt: skip
    with pytest.raises(StudyError, match=r"controls\.identity_ca is missing"):
        run_study(old, tmp_path, workers=0, progress=False)


def test_network_that_cannot_be_widened_is_told(monkeypatch):
    plan = study(
        recipe=recipe(model="vgg11", model_args={}),
        variants={"bn": {"model": "vgg13"}},
        controls=["widened"],
    )
    large = SimpleNamespace(parameters=lambda: [torch.empty(1, device="meta")])
    monkeypatch.setattr(matching, "build_model", lambda *_: (large, []))
    with pytest.raises(StudyError, match=r"controls\.widened_bn: vgg11 cannot be widened to "):
        matching.find_widths(plan, load_data("fashion_mini"))


def test_wrong_width_given_by_hand_is_refused(tmp_path):
    by_hand = {"of": "ca", "model_args": {"channels": [8, 8, 8, 32]}}
    with pytest.raises(StudyError, match=r"controls\.widened: has .* leave model_args out"):
        run_study(study(controls={"widened": by_hand}), tmp_path, progress=False)


def test_controls_do_not_make_the_verdict_on_variants_milder_or_stricter():
    plain = summarise(made_up())
    extra = {"widened_up": "wider", "identity_up": "frozen"}
    trials = list(made_up().trials)
    for source, name in (("same", "widened_up"), ("baseline", "identity_up")):
        trials += [_renamed(t, name) for t in trials if t.variant == source]
    data = made_up(
        trials=tuple(trials),
        controls=extra,
        matched={"widened_up": "up"},
        frozen={"identity_up": "up"},
    )
    summary = summarise(data)
    assert [c.p_holm for c in summary.comparisons[:2]] == [c.p_holm for c in plain.comparisons]
    assert summary.headline == plain.headline
    assert [row.name for row in summary.rows][3:] == ["widened_up", "identity_up"]
    ((control, against),) = summary.against
    assert (control, against.variant, against.verdict) == ("widened_up", "up", "better")
    assert against.mean == pytest.approx(
        plain.comparisons[0].mean - plain.comparisons[1].mean, abs=1e-9
    )
    check = summary.checks[-1]
    assert (check.name, check.passed) == ("Identity control", True)
    assert "4 pairs are equal to the last digit" in check.finding
    noisy = tuple(
        _renamed(t, t.variant, value=t.value + 0.25) if t.variant == "identity_up" else t
        for t in trials
    )
    check = summarise(made_up(trials=noisy, controls=extra, frozen=data.frozen)).checks[-1]
    assert check.passed is None
    assert "by up to 0.25" in check.finding


def _renamed(trial, name, **fields):
    return replace(trial, variant=name, **fields)
