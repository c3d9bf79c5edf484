"""Grafts in networks of segmentation_models_pytorch, its own encoders and timm's."""

import pytest
import torch

from tests.surgery.models import alive
from visgraft.surgery import find_sites, graft

smp = pytest.importorskip("segmentation_models_pytorch")

SHAPE = (1, 3, 64, 64)
X = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))


def trained(done):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in done.parameters():
            parameter.add_(0.1 * torch.rand(parameter.shape, generator=generator))
    return done


@pytest.mark.parametrize(
    ("network", "encoder", "trunk", "convs"),
    [
        ("Unet", "resnet18", "encoder", 27),
        ("Unet", "tu-resnet18", "encoder.model", 27),
        ("FPN", "tu-mobilenetv3_small_100", "encoder.model", None),
    ],
)
def test_segmentation(network, encoder, trunk, convs):
    torch.manual_seed(0)
    model = alive(getattr(smp, network)(encoder, encoder_weights=None, classes=2))
    sites = find_sites(model)
    ends = [s.path for s in sites if s.kind == "block_end"]
    assert ends
    assert all(path.startswith(trunk) for path in ends)
    if convs is not None:
        assert sum(s.kind == "conv3x3" for s in sites) == convs
    keys, before = list(model.state_dict()), model(X)
    done = graft(model, "coord_attention", "block_end")
    assert (done.totals.kept, done.max_difference) == (len(keys), 0)
    assert torch.equal(model(X), before)
    trained(done)
    assert not torch.allclose(model(X), before)
    model.train()(X).square().mean().backward()
    assert all(p.grad is not None for p in done.parameters())
    model.zero_grad()
    done.undo()
    assert list(model.state_dict()) == keys
    assert not any("graft" in name for name, _ in model.named_modules())


def test_the_decoder_can_be_grafted_too():
    torch.manual_seed(0)
    model = alive(smp.Unet("resnet18", encoder_weights=None, classes=2))
    before = model(X)
    done = graft(model, "cot", "decoder.blocks.*.conv2.0", example=SHAPE)
    assert [s.path for s in done.sites] == [f"decoder.blocks.{i}.conv2.0" for i in range(5)]
    assert torch.equal(model(X), before)
    trained(done).undo()
    assert torch.equal(model(X), before)
