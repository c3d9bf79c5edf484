"""What is frozen in a detector's network, and that it stays frozen."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.tasks.detection.detector_cases import objects, pictures, quick, shaken, small_detector
from visgraft.models import create_model
from visgraft.surgery import graft
from visgraft.tasks.detection import build_detector


def _trained(model: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns a detector's tensors before and after two steps with a large learning rate."""
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    images = pictures()
    for _ in range(2):
        optimizer.zero_grad()
        sum(model.train()(images, objects(images)).values()).backward()
        optimizer.step()
    return before, model.state_dict()


def _changed(model: nn.Module) -> set[str]:
    before, after = _trained(model)
    prefix = "backbone.network."
    return {
        k.removeprefix(prefix)
        for k in before
        if k.startswith(prefix) and not torch.equal(before[k], after[k])
    }


@pytest.mark.parametrize(
    ("name", "stages", "expected"),
    [
        ("test_gc_resnet", 0, set()),
        ("test_gc_resnet", 1, {"conv1", "bn1", "layer1"}),
        ("test_gc_resnet", 3, {"conv1", "bn1", "layer1", "layer2", "layer3"}),
        ("test_resnet_acmix", 2, {"conv1", "bn1", "layer1", "layer2"}),
        ("test_spd_resnet", 1, {"conv1", "bn1", "layer1"}),
        ("test_swin_acmix", 2, {"patch_embed", "layers.0", "layers.1"}),
        ("test_convnext", 1, {"stem", "stages.0"}),
        ("test_efficientnet", 2, {"conv_stem", "bn1", "blocks.0", "blocks.1"}),
    ],
)
def test_frozen_stages_are_the_stem_and_the_first_stages(
    name: str, stages: int, expected: set[str]
):
    model: Any = small_detector(name=name, frozen_stages=stages)
    names = {k: p.requires_grad for k, p in model.backbone.network.named_parameters()}
    inside = {k for k in names if any(k.startswith(f"{path}.") for path in expected)}
    assert {k for k, learns in names.items() if not learns} == inside
    assert all(p.requires_grad for p in model.backbone.fpn.parameters())
    modes = {k: m.training for k, m in model.backbone.network.named_modules()}
    assert not any(modes[path] for path in expected if path in modes)
    assert all(modes[k.rpartition(".")[0]] for k in names if k not in inside)


def test_frozen_stages_keep_their_tensors_in_training():
    changed = _changed(small_detector(name="test_gc_resnet", frozen_stages=2))
    assert {k.split(".")[0] for k in changed} == {"layer3", "layer4"}
    assert any(k.endswith("running_mean") for k in changed)


def test_frozen_norms_keep_parameters_and_statistics():
    model: Any = small_detector(name="test_cotnet", frozen_norm=True)
    norms = {k for k, m in model.backbone.network.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert any("conv2" in k for k in norms)  # inside the paper's block
    changed = _changed(model)
    assert not {k.rpartition(".")[0] for k in changed} & norms
    assert any(k.startswith("conv1") for k in changed)


def test_frozen_norms_do_not_change_names_or_numbers_of_tensors():
    torch.manual_seed(0)
    plain = small_detector(name="test_botnet").state_dict()
    frozen = small_detector(name="test_botnet", frozen_norm=True).state_dict()
    assert plain.keys() == frozen.keys()
    assert all(torch.equal(plain[k], frozen[k]) for k in plain)


def test_modes_switch_and_frozen_modules_stay_in_evaluation():
    model: Any = small_detector(name="test_gc_resnet", frozen_stages=1, frozen_norm=True)
    for one in (model, copy.deepcopy(model)):
        assert not any(m.training for m in one.eval().modules())
        one.train()
        network = one.backbone.network
        norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        assert not any(m.training for m in [*norms, network.layer1, network.layer1[0]])
        assert all(m.training for m in (one, network, network.layer2, one.backbone.fpn))


def test_gradients_are_those_of_the_unfrozen_network():
    images = pictures()
    found = []
    for stages in (0, 2):
        model = small_detector(name="test_gc_resnet", frozen_stages=stages, frozen_norm=True)
        torch.manual_seed(0)
        sum(model(images, objects(images)).values()).backward()
        found.append({k: p.grad for k, p in model.named_parameters() if p.grad is not None})
    assert found[1].keys() < found[0].keys()
    assert all(torch.equal(found[0][k], g) for k, g in found[1].items())


GATE = ("coord_attention", "layer1.*.bn2", "layer1.0.bn2.graft.")
MIXER = ("cot", "layer1.*.conv2", "layer1.0.conv2.graft.")
PAPER = ("paper:cot", "layer1.*.conv2", "layer1.0.conv2.")
TRANSPLANT = ("deform_conv", "layer1.*.conv2", "layer1.0.conv2.offset.")


@pytest.mark.parametrize(
    ("block", "at", "learning", "is_before"),
    [
        (*made, is_before)
        for made in (GATE, MIXER, PAPER, TRANSPLANT)
        for is_before in (False, True)
    ],
)
def test_grafts_in_frozen_stages_learn(block: str, at: str, learning: str, is_before: bool):
    torch.manual_seed(0)
    network = shaken(create_model("test_gc_resnet"))
    plain = set(network.state_dict())
    start, _, name = block.rpartition(":")
    options: dict[str, Any] = {"example": (1, 3, 64, 64), "start": start or "identity"}
    made = [graft(network, name, at, **options)] if is_before else []
    takes_the_place = start == "paper" or name == "deform_conv"
    model = build_detector(
        "faster_rcnn",
        network,
        num_classes=3,
        channels=32,
        image_size=64,
        frozen_stages=2,
        frozen_norm=True,
        learning=[p for done in made for p in done.parameters()] if takes_the_place else [],
        **quick("faster_rcnn"),
    )
    if not is_before:
        made.append(graft(network, name, at, **options))
    changed = _changed(model)
    assert all(p.requires_grad for p in made[0].parameters())
    assert not {k for k in changed & plain if k.startswith(("conv1", "layer1", "layer2"))}
    assert {k for k in changed if k.startswith(learning)}
    has_norms = block != "deform_conv"
    assert any(k.endswith("running_mean") for k in changed) == has_norms
