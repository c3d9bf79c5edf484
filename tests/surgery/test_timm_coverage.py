"""Diverse networks of timm: each is grafted and starts from the same output, or says why not."""

import pytest
import timm
import torch

from tests.surgery.models import alive
from visgraft.surgery import find_sites, graft

SIZE = 64
NETWORKS = [
    "resnet10t",
    "resnetv2_50",
    "regnetx_002",
    "efficientnet_b0",
    "mobilenetv2_035",
    "densenet121",
    "vgg11",
    "ghostnet_050",
    "repvgg_a0",
    "convnext_atto",
]
ORDERS = [("coord_attention", "block_end", None), ("cot", "conv3x3", "parallel")]
WITHOUT = {  # what a network does not have, or a block does not do
    ("densenet121", "block_end"): "sites of this model: 58 conv3x3, 1 downsample",
    ("densenet121", "conv3x3"): r"cot does not fit at 58 of 58 sites: .* from 128 to 32\)$",
    ("vgg11", "block_end"): "sites of this model: 8 conv3x3 ",
    ("convnext_atto", "conv3x3"): "sites of this model: 4 downsample, 12 block_end, 4 stage_end",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_grafts_exactly_or_says_why_not(name):
    model = alive(timm.create_model(name))
    example = torch.randn(2, 3, SIZE, SIZE)
    names = list(model.state_dict())
    with torch.no_grad():
        before = model(example)
    for block, at, how in ORDERS:
        if (name, at) in WITHOUT:
            with pytest.raises(ValueError, match=WITHOUT[name, at]):
                graft(model, block, at, how=how, example=example)
            continue
        done = graft(model, block, at, how=how, strict=False, example=example)
        assert len(done.sites) + len(done.skipped) == len(
            [site for site in find_sites(model, example) if site.kind == at]
        )
        assert (done.max_difference, done.totals.kept) == (0.0, len(names))
        with torch.no_grad():
            assert torch.equal(model(example), before)
            for parameter in done.parameters():
                parameter.add_(0.1)
            assert not torch.equal(model(example), before)
            done.undo()
            assert torch.equal(model(example), before)
        assert list(model.state_dict()) == names
