"""A detector whose network was grafted goes to a file and comes back."""

import pytest
import torch

import visgraft
from tests.tasks.detection.tiny_run import HEADS
from visgraft.models import create_model
from visgraft.tasks.detection.detectors import build_detector


def build():
    network = create_model("resnet10_small", channels=[4, 8, 8, 8])
    return build_detector("mask_rcnn", network, num_classes=3, image_size=64, **HEADS)


def test_saved_with_grafts_in_its_network(tmp_path):
    detector = build().eval()
    network = detector.backbone.network
    done = visgraft.graft(network, "coord_attention", "layer4.*.conv2", how="after", start="paper")
    path = tmp_path / "detector.safetensors"
    visgraft.save(detector, path, grafts=done, build=build)
    again = visgraft.load(path, build=build)
    image = [torch.rand(3, 60, 50)]
    with torch.no_grad():
        found, expected = again(image)[0], detector(image)[0]
    assert len(found["boxes"])
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(ValueError, match=r"has no part 'backbone\.network', which was grafted"):
        visgraft.load(path, build=lambda: build().backbone.network)
    with pytest.raises(ValueError, match="is of another model"):
        visgraft.save(build(), path, grafts=done, build=build)
    with pytest.raises(
        ValueError, match="pass build=, a function that builds it without its grafts"
    ):
        visgraft.load(path)
