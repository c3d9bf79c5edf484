"""Where to put a block: the places, what survives, what is trained again, what is refused."""

import math

import pytest
import timm
import torch
from torch import nn

import visgraft.models  # noqa: F401 - registers ours
from tests.study.made_up_placement import WORTH, made_up_plan, trained
from tests.study.tiny import recipe
from visgraft.cli.main import main
from visgraft.study.errors import StudyError
from visgraft.study.placement import placing as placement
from visgraft.study.placement.candidates import derive_places
from visgraft.study.placement.halving import final_seeds, plan_rungs, rank
from visgraft.study.placement.network import map_network
from visgraft.study.placement.placing import place
from visgraft.study.placement.plan import plan_placement
from visgraft.study.placement.report import place_rows
from visgraft.study.reports.writing import study_data
from visgraft.study.store import Store
from visgraft.surgery.sites import survey
from visgraft.tasks.errors import RecipeError
from visgraft.tasks.graft_spec import GraftSpec
from visgraft.tasks.recipe import load_recipe


def surveyed(model, size=64):
    with torch.device("meta"):
        return survey("test", timm.create_model(model), (2, 3, size, size))


def places(found, block, how=None):
    """Name to patterns and layers."""
    proposed = derive_places(found, GraftSpec(block=block, at="*", how=how), "net")
    return {
        name: (patterns, [s.path for s in sites]) for name, (patterns, _, sites) in proposed.items()
    }


def test_places_in_resnet10_small():
    found = surveyed("resnet10_small", 28)
    gates = places(found, "coord_attention")
    assert {name: paths for name, (_, paths) in gates.items()} == {
        **{f"stage{n}": [f"layer{n}.0.bn2"] for n in range(1, 5)},
        "all": [f"layer{n}.0.bn2" for n in range(1, 5)],
    }
    assert gates["stage2"][0] == ("stage2/block_end",)
    assert gates["all"][0] == tuple(f"stage{n}/block_end" for n in range(1, 5))
    mixers = places(found, "cot")
    assert mixers["stage3"] == (("stage3/conv3x3",), ["layer3.0.conv1", "layer3.0.conv2"])
    assert mixers["all"][1][0] == "layer1.0.conv1"  # not the stem's
    downsampling = places(found, "spd_conv")
    assert list(downsampling) == ["stage2", "stage3", "stage4", "all"]


def test_places_in_resnet18():
    found = surveyed("resnet18")
    gates = places(found, "global_context")
    stages = [f"stage{n}{end}" for n in range(1, 5) for end in ("_last", "")]
    assert list(gates) == [*stages, "all_last", "all"]
    assert gates["stage4_last"] == (("layer4.1.bn2",), ["layer4.1.bn2"])
    assert gates["stage4"][1] == ["layer4.0.bn2", "layer4.1.bn2"]
    assert gates["all_last"][1] == [f"layer{n}.1.bn2" for n in range(1, 5)]
    mixers = places(found, "cot")
    assert mixers["stage2_last"][1] == ["layer2.1.conv1", "layer2.1.conv2"]
    assert len(mixers["all"][1]) == 16
    assert places(found, "cot", "after") == gates
    downsampling = places(found, "spd_conv")
    assert downsampling["stem"] == (("stage0/downsample",), ["conv1"])
    assert downsampling["all"][1][0] == "conv1"


def test_places_in_mobilenet():
    found = surveyed("mobilenetv2_035")
    gates = places(found, "coord_attention")
    assert gates["stage3_last"][1] == ["blocks.3.3.bn3"]
    assert gates["stage3"][1] == ["blocks.3.1.bn3", "blocks.3.2.bn3", "blocks.3.3.bn3"]
    mixers = places(found, "deform_conv")
    assert mixers["stage3"][1] == [f"blocks.3.{n}.conv_dw" for n in range(4)]
    assert mixers["stage5_last"][1] == ["blocks.6.0.conv_dw"]
    assert "stem" not in mixers
    network = map_network(found)
    assert [b.path for b in network.blocks if b.stage == 3] == [f"blocks.3.{n}" for n in range(4)]
    first = network.blocks[0]
    assert (first.path, first.stage, first.channels, first.feature_size) == (
        *("conv_stem", 0, 16), (32, 32),
    )  # fmt: skip
    narrowing = network.blocks[network.index_of("blocks.3.0.conv_dw")]
    assert (narrowing.path, narrowing.channels, narrowing.feature_size) == (
        "blocks.3.0",
        24,
        (4, 4),
    )


def test_places_in_convnext():
    found = surveyed("convnext_atto")
    gates = places(found, "coord_attention")
    assert gates["stage3_last"][1] == ["stages.2.blocks.5.drop_path"]
    assert len(gates["stage3"][1]) == 6
    assert len(gates["all"][1]) == 12
    with pytest.raises(StudyError) as caught:
        places(found, "cot")
    assert str(caught.value) == (
        "place: cot goes to 3 x 3 convolutions, and net has none outside its stem (it has strided "
        "convolutions, block ends, stage ends); name places with at (--at), or another how (--how)"
    )
    assert places(found, "cot", "after") == gates


class Wide(nn.Module):
    """A block of 5 x 5 convolutions, with a shortcut where it keeps the channels."""

    def __init__(self, channels, out_channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, 5, padding=2)

    def forward(self, x):
        y = self.conv(x)
        return x + y if x.shape == y.shape else y


def test_blocks_without_a_site_are_on_the_map():
    stage = nn.Sequential(Wide(8, 16), Wide(16, 16), Wide(16, 16))
    network = map_network(survey("test", nn.Sequential(nn.Conv2d(3, 8, 3), stage), (2, 3, 9, 9)))
    assert [b.path for b in network.blocks] == ["0", "1.0", "1.1", "1.2"]
    assert network.index_of("1.0.conv") == 1
    assert network.blocks[1].channels == 16


def test_candidates_are_priced_and_misfits_told():
    at = [
        "stage1/block_end",
        "stage4/block_end",
        "layer4.0.bn2",
        ["stage3/block_end", "layer4.*.bn2"],
    ]
    narrow = {"channels": [8, 32, 32, 32]}
    plan = plan_placement(
        "global_context", recipe=recipe(epochs=4, model_args=narrow), at=at, survivors=1
    )
    one, four, same, two = plan.candidates.found
    assert [c.name for c in plan.candidates.found] == [
        *("stage1-block_end", "stage4-block_end", "layer4.0.bn2", "stage3-block_end+layer4.x.bn2")
    ]
    assert one.reason.startswith("global_context does not fit at 1 of 1 sites: layer1.0.bn2 (Glob")
    assert "strict" not in one.reason
    assert same.reason == "the same layers as stage4-block_end"
    assert (one.params, same.params) == (None, None)
    gate = (32 * 1 + 1) + (32 * 2 + 2) + 2 * 2 + (2 * 32 + 32)  # key, narrow, norm, widen
    base = plan.candidates.params
    assert (four.params - base, two.params - base) == (gate, 2 * gate)
    assert two.macs - plan.candidates.macs == pytest.approx(
        sum(32 * n * n * 2 + 2 * 32 * 2 for n in (7, 4)), rel=0.01
    )
    assert (four.blocks, two.blocks) == ((4,), (3, 4))
    assert (four.paths, two.paths) == (("layer4.0.bn2",), ("layer3.0.bn2", "layer4.0.bn2"))
    assert [(r.candidates, r.survivors, r.epochs) for r in plan.rungs] == [(2, 1, 2)]
    assert plan.final_epochs == 2 * 5 * 4
    assert plan.total_epochs == 40 + 3 * 2 * 2
    assert plan.exhaustive_epochs == 3 * 5 * 4


@pytest.mark.parametrize(
    ("candidates", "survivors", "epochs", "eta", "expected"),
    [
        (10, 3, 8, 2, [(10, 5, 2), (5, 3, 4)]),
        (9, 3, 9, 2, [(9, 5, 2), (5, 3, 4)]),
        (5, 3, 5, 2, [(5, 3, 2)]),
        (3, 3, 1, 2, []),
        (10, 1, 81, 3, [(10, 4, 3), (4, 2, 9), (2, 1, 27)]),
        (40, 3, 16, 2, [(40, 20, 1), (20, 10, 2), (10, 5, 4), (5, 3, 8)]),
    ],
)
def test_halving(candidates, survivors, epochs, eta, expected):
    rungs = plan_rungs(candidates, survivors, epochs, eta=eta)
    assert [(r.candidates, r.survivors, r.epochs) for r in rungs] == expected
    assert [r.number for r in rungs] == list(range(1, len(expected) + 1))


def test_no_two_rungs_nor_the_final_study_share_a_seed():
    groups = [r.seeds for r in plan_rungs(40, 3, 16, seeds=1000)] + [final_seeds(1000)]
    assert groups[0] == tuple(range(1000, 2000))
    assert len({seed for group in groups for seed in group}) == sum(map(len, groups)) == 5000


def test_rank():
    params = {"a": 3, "b": 2, "c": 1, "d": 1}
    assert rank({"a": 0.5, "b": 0.5, "c": -1.0, "d": 2.0}, params) == ["d", "b", "a", "c"]
    up = rank({"a": 0.5, "b": 0.4, "c": None, "d": math.nan}, params)
    assert up == ["a", "b", "c", "d"]
    lower = rank({"a": 0.5, "b": 0.4, "c": None, "d": -2.0}, params, higher_is_better=False)
    assert lower == ["d", "b", "a", "c"]
    assert rank({"z": 0.0, "a": 0.0}, {"z": 1, "a": 1}) == ["z", "a"]


def test_rungs_are_short_studies_by_the_same_recipe():
    plan = made_up_plan(epochs=8)
    first, second = (plan.screening_study(rung, ["stage4", "all"]) for rung in plan.rungs)
    assert (first.recipe.epochs, second.recipe.epochs) == (2, 4)
    assert (first.recipe.warmup_epochs, second.recipe.warmup_epochs) == (0.25, 0.5)
    final = plan.final_study(["stage4"])
    assert final.recipe == plan.recipe
    assert first.recipe.model_copy(update={"epochs": 8, "warmup_epochs": 1.0}) == plan.recipe
    assert [graft.at for graft in first.variants["all"].grafts] == [("block_end",)]
    assert not set(first.seeds) & set(second.seeds)
    assert not set(final.seeds) & {*first.seeds, *second.seeds}


def test_whole_placement(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(placement, "run_study", trained(ran=ran))
    result = place(made_up_plan(), folder=tmp_path / "place")
    one, two = result.rungs
    assert one.survivors == ("stage4", "stage3", "all")
    assert two.survivors == ("stage4", "stage3")
    assert set(result.final.data.variants) == set(two.survivors)
    assert result.final.data.seeds == (0, 1, 2, 3)
    trials = {
        name: {(v, s) for folder, v, s in ran if folder == name}
        for name in ("rung1", "rung2", "final")
    }
    assert len(ran) == sum(map(len, trials.values())) == 6 * 2 + 4 * 2 + 3 * 4
    assert {seed for _, seed in trials["rung2"]} == {2000, 2001}
    assert result.headline.startswith("coord_attention in resnet10_small: better than the baseline")
    assert place(made_up_plan(), folder=tmp_path / "place").headline == result.headline
    assert len(ran) == 32  # nothing was trained again


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement, "run_study", trained())
        return place(made_up_plan(), folder=tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("stop_after", [5, 12, 25])
def test_interrupted_placement_goes_on(tmp_path, monkeypatch, whole, stop_after):
    ran = []
    monkeypatch.setattr(placement, "run_study", trained(stop_after=stop_after, ran=ran))
    with pytest.raises(KeyboardInterrupt):
        place(made_up_plan(), folder=tmp_path / "place")
    monkeypatch.setattr(placement, "run_study", trained(ran=ran))
    result = place(made_up_plan(), folder=tmp_path / "place")
    assert len(ran) == len(set(ran)) == 32
    assert [r.survivors for r in result.rungs] == [r.survivors for r in whole.rungs]
    assert result.final.comparisons == whole.final.comparisons


def test_survivors_stay_although_a_failed_trial_would_succeed_later(tmp_path, monkeypatch):
    fails = {("rung1", "stage4")}
    monkeypatch.setattr(placement, "run_study", trained(fails=fails))
    result = place(made_up_plan(), folder=tmp_path)
    assert "stage4" not in result.rungs[0].survivors
    assert result.failed == 2
    ran = []
    monkeypatch.setattr(placement, "run_study", trained(ran=ran))
    again = place(made_up_plan(), folder=tmp_path)
    assert [r.survivors for r in again.rungs] == [r.survivors for r in result.rungs]
    assert ran == []


def test_rung_without_any_number(tmp_path, monkeypatch):
    monkeypatch.setattr(placement, "run_study", trained(fails={("rung1", "baseline")}))
    with pytest.raises(StudyError, match=r"no training run in .*rung1 can be compared with the ba"):
        place(made_up_plan(), folder=tmp_path)
    monkeypatch.setattr(placement, "run_study", trained())
    assert place(made_up_plan(), folder=tmp_path).final is not None


def test_loss_is_better_when_lower(tmp_path, monkeypatch):
    monkeypatch.setattr(placement, "run_study", trained())
    result = place(made_up_plan(metric="loss"), folder=tmp_path)
    assert result.rungs[0].survivors[0] == "stage4"
    assert "stage1" not in result.rungs[0].survivors
    assert "better than the baseline: stage4 (-" in result.headline
    lanes = {row.candidate.name: row.lane for row in place_rows(result)}
    assert lanes["stage4"].styles == ("final", "better", "gain")
    assert lanes["stage4"].number.startswith("-1.")
    assert lanes["stage1"].styles == ("screening", "loss")
    assert lanes["stage1"].number.startswith("▽ +0.4")


def test_other_settings_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(placement, "run_study", trained())
    folder = tmp_path / "place"
    place(made_up_plan(), folder=folder)
    before = {path: path.read_bytes() for path in folder.glob("*.*")}
    for changed, told in (
        (made_up_plan(seeds=5), r"seeds was \[0, 1, 2, 3\] and is \[0, 1, 2, 3, 4\]"),
        (made_up_plan(survivors=3), r"survivors was 2 and is 3; screening was"),
        (made_up_plan(epochs=8), r"recipe\.epochs was 4 and is 8; screening was"),
    ):
        with pytest.raises(StudyError, match=rf"begun with other settings \({told}"):
            place(changed, folder=folder)
    assert {path: path.read_bytes() for path in folder.glob("*.*")} == before
    with pytest.raises(StudyError, match=r"holds a study, not a placement"):
        place(made_up_plan(), folder=folder / "final")


@pytest.mark.parametrize(
    ("wishes", "told"),
    [
        ({"block": "coord_atention"}, "place: block: no block 'coord_atention'; nearest: coord_at"),
        ({"options": {"reductio": 4}}, "'coord_attention' takes no argument 'reductio'; did you m"),
        ({"how": "befor"}, "place: how: must be one of replace, after, parallel, got 'befor'"),
        (
            {"model": "resne18"},
            "'resne18' is no network of timm or visgraft; did you mean resnet18",
        ),
        ({"at": ["stage7/block_end"]}, "place: at='stage7/block_end' matches nothing"),
        ({"seeds": 1}, "place: seeds must be 2 to 1000, got 1; a verdict rests on the spread"),
        ({"screening_seeds": 0}, "place: screening_seeds must be 1 to 1000, got 0"),
        ({"eta": 4}, "place: eta must be 2 or 3, got 4"),
        ({"survivors": 6}, "place: 6 survivors are more than the 5 candidates that can be grafted"),
        ({"survivors": 0}, "place: survivors must be at least 1, got 0"),
        (
            {"epochs": 1},
            "place: 5 candidates come down to 3 in 1 rung, which takes a recipe of at least 2 "
            "epochs, got 1; train longer, or let more survive",
        ),
        ({"metric": "top2"}, "metric: must be one of top1, top5, loss (classification), got 'top"),
        ({"controls": ["wider"]}, "there is no control 'wider'; choose from identity, widened"),
    ],
)
def test_refusals(tmp_path, wishes, told):
    wishes = {"block": "coord_attention", "recipe": recipe(epochs=4)} | wishes
    with pytest.raises((StudyError, RecipeError)) as caught:
        place(wishes.pop("block"), folder=tmp_path / "place", **wishes)
    assert told in str(caught.value)
    assert not (tmp_path / "place").exists()


def test_list_trains_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["study", "place", "coord_attention", "--list", "--option", "reduction=16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["baseline", "309", "k", "13.0", "M"]
    assert lines[-5].startswith("all   ")
    assert lines[-3:-1] == [
        "rung 1: 5 places and the baseline, 2 epochs, seeds 1000 to 1001; 3 go on",
        "final: 3 places and the baseline, 5 epochs, seeds 0 to 4",
    ]
    assert list(tmp_path.iterdir()) == []


def test_recipe_of_the_folder_repeats_the_placement(tmp_path, monkeypatch):
    monkeypatch.setattr(placement, "run_study", trained())
    plan = made_up_plan()
    place(plan, folder=tmp_path)
    assert load_recipe(tmp_path / "recipe.yaml") == plan.recipe
    assert study_data(tmp_path / "final").recipe["epochs"] == 4
    assert Store.open(tmp_path / "rung1").study.metric == "top1"
    assert set(WORTH) == {c.name for c in plan.candidates.usable}
