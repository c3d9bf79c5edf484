"""Right after `start="identity"` the model computes what it did, and can learn from there."""

import copy

import pytest
import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from tests.surgery import models
from visgraft.surgery import graft

GRAFTS = [
    ("coord_attention", "block_end", "after"),
    ("global_context", "block_end", "after"),
    ("coord_attention", "stage_end", "parallel"),
    ("cot", lambda site: site.kind == "block_end" and site.in_channels % 32 == 0, "parallel"),
]
CASES = [("resnet18", *one) for one in GRAFTS] + [
    ("mobilenetv3_small_100", *GRAFTS[0]),
    ("mobilenetv3_small_100", *GRAFTS[3]),
    ("convnext_atto", *GRAFTS[0]),
    ("convnext_atto", *GRAFTS[2]),
]


def images(*size):
    return torch.randn(size, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("name", "block", "at", "how"), CASES)
def test_outputs_are_equal_in_every_precision_and_layout(name, block, at, how, build):
    plain, model, x = build(name), build(name), images(2, 3, 64, 64)
    done = graft(model, block, at, how=how, strict=False)
    assert done.max_difference == 0.0
    with torch.no_grad():
        assert torch.equal(model(x), plain(x))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model(x), plain(x))
        model.bfloat16(), plain.bfloat16()
        assert torch.equal(model(x.bfloat16()), plain(x.bfloat16()))
        model.float(), plain.float()
        model.to(memory_format=torch.channels_last), plain.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
        result = model(x)
        assert torch.equal(result, plain(x))
        done.parameters()[0].add_(1.0)  # the comparison can tell a graft that works
        for parameter in done.parameters():
            parameter.add_(0.1)
        assert not torch.equal(model(x), result)


@pytest.mark.parametrize(("block", "at", "how"), GRAFTS)
def test_outputs_are_equal_in_training_mode(block, at, how, build):
    plain, model, x = build("resnet18").train(), build("resnet18").train(), images(2, 3, 64, 64)
    graft(model, block, at, how=how, strict=False)
    assert torch.equal(model(x), plain(x))
    for name, buffer in plain.named_buffers():
        assert torch.equal(model.get_buffer(name), buffer)


def test_dropout_inside_a_block_changes_nothing(build):
    def make(site):
        return nn.Sequential(nn.Conv2d(site.out_channels, site.out_channels, 1), nn.Dropout(0.5))

    model, plain, x = build("resnet18").train(), build("resnet18").train(), images(2, 3, 64, 64)
    graft(model, make, "block_end")
    assert torch.equal(model(x), plain(x))


def test_the_layout_of_the_map_stays():
    net = nn.Sequential(models.conv(3, 32), nn.Identity()).to(memory_format=torch.channels_last)
    x = images(2, 3, 16, 16).to(memory_format=torch.channels_last)
    strides = net(x).stride()
    graft(net, "coord_attention", "0", how="after", example=x)
    graft(net, "cot", "1", how="parallel", example=x)
    assert net(x).stride() == strides
    kernels = [p for p in net[1].graft.parameters() if p.ndim == 4 and p.shape[2:] == (3, 3)]
    assert kernels
    assert not any(kernel.is_contiguous() for kernel in kernels)


@pytest.mark.parametrize(("how", "block"), [("after", "coord_attention"), ("parallel", "cot")])
def test_gradient_reaches_the_scale_at_once_and_the_block_after_a_step(how, block):
    net = nn.Sequential(models.conv(3, 32), nn.ReLU(), models.conv(32, 32), nn.ReLU())
    done = graft(net, block, "2", how=how, example=(1, 3, 16, 16))
    holder, x = net[2].graft, images(4, 3, 16, 16)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    seen = []
    for _ in range(2):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        seen.append(
            (
                holder.scale.grad.abs().sum().item() > 0,
                any(p.grad.abs().sum() > 0 for p in holder.block.parameters()),
            )
        )
        optimizer.step()
    assert seen == [(True, False), (True, True)]
    assert len(done.parameters()) == 1 + len(list(holder.block.parameters()))


def test_a_gate_that_starts_as_the_identity_gets_no_scale():
    net = nn.Sequential(models.conv(3, 32), nn.ReLU())
    graft(net, "global_context", "0", example=(1, 3, 16, 16))
    assert net[0].graft.scale is None
    net(images(2, 3, 16, 16)).square().sum().backward()
    assert net[0].graft.block.add.expand.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("make", "scaled"),
    [(models.Gate, True), (models.StartsAsIdentity, False), (nn.Identity, False)],
)
def test_a_block_that_does_not_say_is_tried(make, scaled):
    net = nn.Sequential(models.conv(3, 32), nn.ReLU())
    state = torch.get_rng_state()
    graft(net, lambda site: make(site.out_channels), "0", example=(1, 3, 16, 16))
    assert (net[0].graft.scale is not None) == scaled
    if make is models.Gate:
        assert torch.equal(torch.get_rng_state(), state)


def test_the_scale_is_one_number_per_channel_without_weight_decay(build):
    model = build("resnet18")
    graft(model, "coord_attention", "stage4/block_end")
    assert model.layer4[0].bn2.graft.scale.shape == (512,)
    groups = param_groups_weight_decay(model, 0.1)
    exempt = {id(p) for g in groups if g["weight_decay"] == 0 for p in g["params"]}
    assert id(model.layer4[0].bn2.graft.scale) in exempt


def test_a_trained_graft_changes_the_output_and_can_be_switched_off(build):
    model, plain, x = build("resnet18"), build("resnet18"), images(1, 3, 64, 64)
    done = graft(model, "coord_attention", "stage4/block_end")
    with torch.no_grad():
        for parameter in done.parameters():
            parameter.add_(0.3)
        assert done.max_difference > 0
        with done.disabled():
            assert torch.equal(model(x), plain(x))
            assert model.layer4[0].bn2.graft.enabled is False
        assert not torch.equal(model(x), plain(x))


def test_paper_start_changes_the_output(build):
    model = build("resnet18")
    done = graft(model, "coord_attention", "stage4/block_end", start="paper")
    assert model.layer4[0].bn2.graft.scale is None
    assert done.max_difference > 0


def test_a_grafted_model_learns():
    torch.manual_seed(0)
    net = models.FunctionalSkip()
    graft(net, "coord_attention", "block_end", example=(1, 3, 16, 16))
    x, y = images(16, 3, 16, 16), torch.arange(16) % 5
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    before = copy.deepcopy(net.state_dict())
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    moved = [
        n for n, t in net.state_dict().items() if ".graft." in n and not torch.equal(t, before[n])
    ]
    assert "second.graft.scale" in moved
    assert "second.graft.block.reduce.weight" in moved


@pytest.mark.parametrize(("block", "stride"), [("deform_conv", 1), ("spd_conv", 2)])
def test_transplants_differ_by_rounding_in_every_precision_and_layout(block, stride):
    plain = nn.Sequential(models.conv(3, 32), nn.BatchNorm2d(32), models.conv(32, 16, stride))
    models.alive(plain)
    x = images(2, 3, 17, 22)
    model = copy.deepcopy(plain)
    done = graft(model, block, "2", example=x)
    assert done.rows[0].how == "replace"

    def close(a, b, epsilons):
        assert a.dtype == b.dtype
        unit = torch.finfo(a.dtype).eps * b.abs().max().item()
        torch.testing.assert_close(a, b, rtol=0, atol=epsilons * unit)

    with torch.no_grad():
        close(model(x), plain(x), 16)
        with torch.autocast("cpu", torch.bfloat16):
            close(model(x), plain(x), 2)
        last = x.to(memory_format=torch.channels_last)
        close(model.to(memory_format=torch.channels_last)(last), plain(last), 16)
        close(model.double()(x.double()), plain.double()(x.double()), 16)
        close(model.bfloat16()(x.bfloat16()), plain.bfloat16()(x.bfloat16()), 2)
        model.float(), plain.float()
        done.parameters()[0].add_(0.5)  # the comparison can tell other weights
        assert done.max_difference > 1e-2
