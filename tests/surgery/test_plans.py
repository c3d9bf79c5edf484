"""A plan repeats a graft in another process, before a checkpoint is loaded."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from tests.surgery import models
from visgraft.surgery import apply_plan, graft

SHAPE = (1, 3, 32, 32)
X = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))


def net():
    return nn.Sequential(models.conv(3, 32), models.conv(32, 32, stride=2), nn.ReLU())


def test_plan_is_readable_json():
    plan = graft(net(), "cot", "1", example=X, kernel_size=5).plan
    assert json.loads(json.dumps(plan)) == plan
    assert plan == {
        "format": "visgraft.graft",
        "version": 1,
        "block": "cot",
        "options": {"kernel_size": 5},
        "how": None,
        "start": "identity",
        "example": [1, 3, 32, 32],
        "sites": [
            {
                "path": "1",
                "kind": "conv3x3",
                "channels": [32, 32],
                "how": "parallel",
                "scaled": True,
                "pool": None,
                "key": "1.graft",
            }
        ],
    }


def test_round_trip_with_a_checkpoint(tmp_path):
    torch.manual_seed(0)
    model = models.alive(models.FunctionalSkip())
    grafts = [
        graft(model, "coord_attention", "block_end", example=SHAPE),
        graft(model, "global_context", ["stem", "down"], example=SHAPE, fuse=("add", "mul")),
        graft(model, "cot", "conv3x3", how="replace", start="paper", strict=False, example=SHAPE),
    ]
    assert [path for path, _ in grafts[2].skipped] == ["stem", "second", "down", "fourth"]
    with torch.no_grad():
        for done in grafts:
            for parameter in done.parameters():
                parameter.add_(0.1)
    file = tmp_path / "plan.json"
    file.write_text(json.dumps([done.plan for done in grafts]))
    fresh = models.alive(models.FunctionalSkip())
    again = apply_plan(fresh, file)
    assert [done.plan for done in again] == [done.plan for done in grafts]
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(X), model(X))


@pytest.mark.slow
def test_in_another_process(tmp_path):
    model = net().eval()
    done = graft(model, "global_context", ["0", "1"], example=X, fuse=("add", "mul"))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    (tmp_path / "plan.json").write_text(json.dumps(done.plan))
    code = f"""
import torch
from torch import nn
from visgraft.surgery import apply_plan
net = nn.Sequential(
    nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, 2, padding=1), nn.ReLU()
).eval()
apply_plan(net, {str(tmp_path / "plan.json")!r})
net.load_state_dict(torch.load({str(tmp_path / "weights.pt")!r}, weights_only=True))
x = torch.randn((1, 3, 32, 32), generator=torch.Generator().manual_seed(3))
print(net(x).double().sum().item())
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(out.stdout) == model(X).double().sum().item()


def test_a_plan_names_paths_not_patterns():
    model = nn.Sequential(models.conv(3, 32), nn.ModuleDict({"a*": models.conv(32, 32)})["a*"])
    plan = graft(model, "coord_attention", "0", example=X).plan
    assert (
        apply_plan(nn.Sequential(models.conv(3, 32), models.conv(32, 32)), plan)[0].sites[0].path
        == "0"
    )


def changed(**changes):
    plan = graft(net(), "coord_attention", ["0", "1"], how="after", example=X).plan
    plan = copy.deepcopy(plan)
    for name, value in changes.items():
        if name.startswith("site_"):
            plan["sites"][1][name.removeprefix("site_")] = value
        else:
            plan[name] = value
    return plan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, r"apply_plan: the plan has version 2, this visgraft reads 1"),
        ({"format": "other"}, r"apply_plan: the plan is not the plan of a graft"),
        ({"sites": "0"}, r"apply_plan: 'sites' of the plan is missing or of the wrong type"),
        ({"sites": [{"path": "0"}]}, r"a site of the plan lacks its path, kind or channels"),
        (
            {"site_path": "9"},
            r"the plan names the layer '9', which this model does not have or does",
        ),
        (
            {"site_channels": [8, 8]},
            r"apply_plan: 1 has 32 -> 32 channels, the plan was made for 8 -> 8",
        ),
        (
            {"site_scaled": False},
            r"apply_plan: at 1 the plan says scaled False, here it is scaled True",
        ),
        ({"block": "no_block"}, r"no block 'no_block'"),
        ({"options": {"reductoin": 4}}, r"coord_attention has no option 'reductoin'"),
        (
            {"how": "befor"},
            r"apply_plan: how must be one of 'replace', .* got 'befor'",
        ),
        (
            {"example": [1, 5, 32, 32]},
            r"apply_plan: Sequential does not run on the example of shape",
        ),
    ],
)
def test_a_plan_that_does_not_fit_changes_nothing(changes, message):
    model = net()
    text, names = repr(model), list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        apply_plan(
            model, [changed(), changed(**changes)] if "version" in changes else changed(**changes)
        )
    assert repr(model) == text
    assert list(model.state_dict()) == names


def test_the_grafts_before_a_plan_that_does_not_fit_are_undone():
    model = net()
    text = repr(model)
    with pytest.raises(
        ValueError, match=r"apply_plan: coord_attention does not fit at 2 of 2 sites"
    ):
        apply_plan(model, [changed(), changed()])
    assert repr(model) == text


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("{not json", r"apply_plan: the plan is not JSON"),
        ("nowhere.json", r"apply_plan: cannot read nowhere\.json: .*No such file"),
        ([], r"apply_plan: the plan is an empty list"),
        (7, r"apply_plan: the plan is not the plan of a graft"),
    ],
)
def test_what_is_no_plan(plan, message):
    with pytest.raises(ValueError, match=message):
        apply_plan(net(), plan)


def test_what_a_plan_cannot_hold():
    made = graft(net(), lambda site: nn.Identity(), "0", example=X)
    with pytest.raises(
        ValueError, match=r"Graft\.plan: the block was made by <function .*register_"
    ):
        _ = made.plan
    model = net()
    odd = graft(model, "coord_attention", "0", example=X, device=torch.device("cpu"))
    with pytest.raises(ValueError, match=r"Graft\.plan: an option of coord_attention is not JSON"):
        _ = odd.plan


def test_a_plan_without_the_shape_of_an_example_takes_one():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = models.conv(3, 32)

        def forward(self, a, b):
            return self.conv(a) + b

    example = (X, torch.ones(1))
    plan = graft(Two(), "coord_attention", "conv", example=example).plan
    assert plan["example"] is None
    (done,) = apply_plan(Two(), plan, example=example)
    assert done.max_difference == 0.0
