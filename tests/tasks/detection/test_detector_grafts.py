"""Grafts in a detector's network, made before the detector is built or after it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tasks.detection.detector_cases import objects, pictures, quick, shaken
from visgraft.models import create_model
from visgraft.surgery import apply_plan, graft
from visgraft.tasks.detection import build_detector

GRAFTS = [
    ("coord_attention", "block_end", {}),
    ("global_context", "stage_end", {"reduction": 4}),
    ("cot", "layer4.*.conv2", {}),
    ("deform_conv", "layer4.*.conv2", {}),
]


def _network() -> nn.Module:
    torch.manual_seed(0)
    return shaken(create_model("test_gc_resnet"))


def _detector(network: nn.Module) -> Any:
    torch.manual_seed(1)
    return build_detector(
        "faster_rcnn",
        network,
        num_classes=3,
        channels=32,
        image_size=(64, 128),
        frozen_norm=True,
        **quick("faster_rcnn"),
    )


def _found(detector: nn.Module) -> list[dict[str, Tensor]]:
    with torch.no_grad():
        return detector.eval()(pictures())


def _is_equal(found: list[dict[str, Tensor]], expected: list[dict[str, Tensor]]) -> bool:
    return all(
        one[key].shape == other[key].shape and torch.equal(one[key], other[key])
        for one, other in zip(found, expected, strict=True)
        for key in other
    )


@pytest.mark.parametrize(("block", "at", "options"), GRAFTS)
def test_a_graft_works_in_the_detector_and_is_undone(block: str, at: str, options: dict[str, Any]):
    detector = _detector(_network())
    expected, tensors = _found(detector), {k: v.clone() for k, v in detector.state_dict().items()}
    done = graft(detector.backbone.network, block, at, example=(1, 3, 64, 96), **options)
    assert done.sites
    if block != "deform_conv":  # an exact transplant, but by another kernel
        assert _is_equal(_found(detector), expected)
    for one, other in zip(_found(detector), expected, strict=True):
        torch.testing.assert_close(one["scores"], other["scores"], rtol=1e-3, atol=1e-4)

    images = pictures()
    sum(detector.train()(images, objects(images)).values()).backward()
    assert all(p.grad is not None for p in done.parameters())
    with torch.no_grad():
        for parameter in done.parameters():
            parameter.add_(0.1)
    assert not _is_equal(_found(detector), expected)
    done.undo()
    assert _is_equal(_found(detector), expected)
    after = detector.state_dict()
    assert after.keys() == tensors.keys()
    assert all(torch.equal(after[k], tensors[k]) for k in tensors)


@pytest.mark.parametrize(("block", "at", "options"), GRAFTS)
def test_a_graft_before_building_is_the_same_as_after(block: str, at: str, options: dict[str, Any]):
    shape = (1, 3, 64, 96)
    network = _network()
    torch.manual_seed(2)
    plan = graft(network, block, at, example=shape, **options).plan
    before = _detector(network)
    after = _detector(_network())
    apply_plan(after.backbone.network, plan)
    assert after.state_dict().keys() == before.state_dict().keys()
    after.load_state_dict(before.state_dict())
    with torch.no_grad():
        for one, other in zip(before.parameters(), after.parameters(), strict=True):
            one.add_(0.01)
            other.add_(0.01)
    assert _is_equal(_found(before), _found(after))


def test_a_graft_is_undone_in_a_detector_that_was_built_on_it():
    expected = _found(_detector(_network()))
    network = _network()
    done = graft(network, "cot", "layer4.*.conv2", start="paper", example=(1, 3, 64, 96))
    detector = _detector(network)
    assert not _is_equal(_found(detector), expected)
    done.undo()
    assert _is_equal(_found(detector), expected)


def test_a_graft_behind_the_last_map_is_refused():
    network = _network()
    graft(network, "coord_attention", "layer4.*.bn2", example=(1, 3, 64, 64))
    tensors = set(network.state_dict())
    with pytest.raises(ValueError, match=r"graft 'layer4.0.bn2.graft'.*does not run.*out_indices"):
        build_detector("faster_rcnn", network, num_classes=1, out_indices=(1, 2))
    assert set(network.state_dict()) == tensors
