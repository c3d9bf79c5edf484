"""Folded networks give the same values; what may not be folded is left, with the reason."""

import copy

import pytest
import timm
import torch
import torchvision
from timm.layers import BatchNormAct2d, StdConv2d
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import visgraft as vg
import visgraft.models
from visgraft.blocks import create_block
from visgraft.inspect import fuse


def lively(model):
    """Gives every normalisation statistics and parameters that do something, and eval mode."""
    for module in model.modules():
        for name in ("running_mean", "bias"):
            tensor = getattr(module, name, None)
            if hasattr(module, "running_var") and tensor is not None:
                tensor.data.normal_(std=0.5)
        for name in ("running_var", "weight"):
            tensor = getattr(module, name, None)
            if hasattr(module, "running_var") and tensor is not None:
                tensor.data.uniform_(0.5, 2)
    return model.eval()


def check(model, example, folded, kept=()):
    """Folds, compares on other data than the example, and returns the copy."""
    before = copy.deepcopy(model.state_dict())
    done = fuse(model, example)
    assert set(done.folded) == set(folded)
    assert set(done.kept) == set(kept)
    x = torch.randn_like(example) * 2
    theirs, ours = model(x), done.model(x)
    tolerance = 1e-10 if x.dtype == torch.float64 else 1e-4
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    assert all(torch.equal(model.state_dict()[name], t) for name, t in before.items())
    assert not done.model.training
    return done


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (lambda b: nn.Conv1d(4, 6, 3, bias=b), nn.BatchNorm1d(6), (2, 4, 9)),
        (lambda b: nn.Conv2d(4, 6, 3, groups=2, bias=b), nn.BatchNorm2d(6), (2, 4, 9, 8)),
        (lambda b: nn.Conv3d(4, 6, 2, bias=b), nn.BatchNorm3d(6, affine=False), (2, 4, 4, 5, 3)),
        (
            lambda b: nn.ConvTranspose1d(4, 6, 3, stride=2, bias=b),
            nn.BatchNorm1d(6, eps=0.1),
            (2, 4, 5),
        ),
        (
            lambda b: nn.ConvTranspose2d(4, 6, 3, groups=2, bias=b),
            nn.SyncBatchNorm(6),
            (2, 4, 5, 6),
        ),
        (lambda b: nn.Linear(5, 6, bias=b), nn.BatchNorm1d(6), (3, 5)),
        (
            lambda b: create_block("deform_conv", 4, out_channels=6, groups=2, bias=b),
            nn.BatchNorm2d(6),
            (2, 4, 9, 8),
        ),
    ],
)
def test_layers(layer, norm, shape, bias):
    model = lively(nn.Sequential(layer(bias), copy.deepcopy(norm), nn.ReLU()).double())
    nn.init.normal_(model[0].get_parameter("weight"))
    done = check(model, torch.randn(shape, dtype=torch.float64), {"1"})
    assert dict(done.folded) == {"1": ("0",)}
    assert type(done.model[1]) is nn.Identity
    assert done.model[0].bias is not None
    assert str(done).startswith("1 normalisations folded, 0 kept; largest difference ")


def test_activations_of_the_normalisation_remain():
    model = lively(nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4, act_layer=nn.SiLU)))
    done = check(model, torch.randn(1, 3, 6, 6), {"1"})
    assert type(done.model[1]) is nn.SiLU


def test_frozen_normalisation():
    frozen = torchvision.ops.FrozenBatchNorm2d(4)
    check(lively(nn.Sequential(nn.Conv2d(3, 4, 3), frozen)), torch.randn(1, 3, 6, 6), {"1"})


class Net(nn.Module):
    """Runs a function of itself and the input."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def conv(channels=4):
    return nn.Conv2d(channels, 4, 3, padding=1)


def one_pair(forward, **more):
    return lively(Net(forward, conv=conv(), norm=nn.BatchNorm2d(4), **more))


X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(3))
NOT_ALONE = "what it reads is not the output of a convolution or linear layer alone"
KEPT = {
    "output used elsewhere": (lambda m, x: m.norm(y := m.conv(x)) + y, "conv: its output is also"),
    "output used before": (
        lambda m, x: (y := m.conv(x)).sum() + m.norm(y),
        "conv: its output is also used by aten.sum",
    ),
    "a part of the output used": (
        lambda m, x: m.norm(y := m.conv(x)) + y[:, :1],
        "conv: its output is also used by aten.slice",
    ),
    "output returned": (
        lambda m, x: (m.norm(y := m.conv(x)), y),
        "conv: its output is part of what the model returns",
    ),
    "in place in between": (lambda m, x: m.norm(m.conv(x).relu_()), "conv: its output is also"),
    "a function in between": (lambda m, x: m.norm(functional.relu(m.conv(x))), NOT_ALONE),
    "joined": (lambda m, x: m.norm(torch.cat([m.conv(x)[:, :2], x[:, 2:]], 1)), NOT_ALONE),
    "turned": (lambda m, x: m.norm(m.conv(x).mT), NOT_ALONE),
    "before the layer": (lambda m, x: m.conv(m.norm(x)), NOT_ALONE),
    "layer alone, too": (
        lambda m, x: m.norm(m.conv(x)) + m.conv(x * 2),
        "conv: its output is also used by aten.add",
    ),
    "layer called in vain": (
        lambda m, x: (m.conv(x * 2), m.norm(m.conv(x)))[1],
        "conv: it is also called without this normalisation",
    ),
    "weight as a tensor": (
        lambda m, x: m.norm(m.conv(x)) * m.conv.weight.mean(),
        "conv: its tensors are also used by aten.mean",
    ),
    "statistics as a tensor": (
        lambda m, x: m.norm(m.conv(x)) * m.norm.running_var.mean(),
        "its tensors are also used by aten.mean",
    ),
    "two normalisations": (lambda m, x: m.norm(y := m.conv(x)) + m.norm(y), "conv: its output is"),
    "not reached": (lambda m, x: m.conv(x), "it is not reached on the example"),
}


@pytest.mark.parametrize("case", KEPT)
def test_kept(case):
    forward, reason = KEPT[case]
    done = check(one_pair(forward), X, (), {"norm"})
    assert reason in done.kept["norm"]
    assert f"kept norm: {done.kept['norm']}" in str(done)


def test_kept_where_something_hooks_in():
    seen = []
    for name in ("conv", "norm"):
        model = one_pair(lambda m, x: m.norm(m.conv(x)))
        getattr(model, name).register_forward_hook(lambda *_: seen.append(1))
        assert "hooks into it" in check(model, X, (), {"norm"}).kept["norm"]
    assert seen


def test_kept_where_tensors_are_computed_or_shared():
    def both(m, x):
        return m.norm(m.conv(x))

    model = one_pair(both)
    parametrizations.weight_norm(model.conv)
    assert "its weight is computed" in check(model, X, (), {"norm"}).kept["norm"]
    model = one_pair(lambda m, x: m.other(m.norm(m.conv(x))), other=conv())
    model.other.weight = model.conv.weight
    assert "shared with another layer" in check(model, X, (), {"norm"}).kept["norm"]
    model = lively(Net(both, conv=conv(), norm=nn.BatchNorm2d(4, track_running_stats=False)))
    assert "statistics of each batch" in check(model, X, (), {"norm"}).kept["norm"]
    model = lively(Net(both, conv=StdConv2d(4, 4, 3), norm=nn.BatchNorm2d(4)))
    assert "with it folded, the layer before it differs by" in fuse(model, X).kept["norm"]


def test_shared_modules():
    def twice(m, x):
        return m.norm(m.conv(m.norm(m.conv(x)).relu()))

    done = check(one_pair(twice), X, {"norm"})
    assert dict(done.folded) == {"norm": ("conv",)}
    model = one_pair(lambda m, x: m.norm(m.conv(x)) + m.again(m.other(x)), other=conv())
    model.again = model.norm
    done = check(model, X, {"norm"})
    assert dict(done.folded) == {"norm": ("conv", "other")}
    assert done.model.again is done.model.norm
    assert type(done.model.norm) is nn.Identity

    def crossed(m, x):
        one, two = m.conv(x), m.other(x)
        return m.norm(two) - m.norm(one)

    check(one_pair(crossed, other=conv()), X, {"norm"})


def test_one_layer_with_two_normalisations_stays():
    model = one_pair(
        lambda m, x: m.norm(m.conv(x)) + m.other(m.conv(x * 2)), other=nn.BatchNorm2d(4)
    )
    check(lively(model), X, (), {"norm", "other"})


def test_gradients_and_dtype_follow():
    model = lively(nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4)))
    model.requires_grad_(False)
    done = fuse(model, X).model
    assert not any(p.requires_grad for p in done.parameters())
    half = fuse(copy.deepcopy(model).bfloat16(), (2, 4, 6, 6))
    assert len(half.folded) == 1
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(half.model(X.bfloat16()).float(), model(X), rtol=0.05, atol=0.05)


NETWORKS = {  # normalisations folded and kept; the reasons are in the architecture
    "test_cotnet": (34, 5),  # kept: behind the aggregation
    "test_cotnext": (29, 4),
    "test_se_cotnetd": (37, 3),
    "test_botnet": (18, 2),  # behind the attention
    "test_resnet_acmix": (13, 4),  # behind the sum of attention and convolution
    "test_gc_resnet": (20, 0),
    "test_mobilenetv2_ca": (24, 0),
    "test_spd_resnet": (17, 3),  # behind space to depth: four kinds of pixels per channel
    "test_dcn_resnet": (20, 0),
    "test_sknet": (30, 0),
    "test_swin_acmix": (0, 0),
    "resnet10t": (14, 0),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name):
    model = lively(timm.create_model(name))
    done = fuse(model, (1, 3, 64, 64) if name == "resnet10t" else None)
    assert (len(done.folded), len(done.kept)) == NETWORKS[name]
    x = torch.randn(
        2, *((3, 64, 64) if name == "resnet10t" else model.pretrained_cfg["input_size"])
    )
    theirs = model(x)
    difference = (done.model(x) - theirs).abs().max() / theirs.abs().max()
    assert difference < 1e-4
    assert set(done.kept.values()) <= {NOT_ALONE}
    if done.kept:
        with pytest.raises(AssertionError):  # the check above can fail
            torch.testing.assert_close(done.model(x), theirs * 1.01)


@pytest.mark.parametrize(
    ("block", "folded", "kept"),
    [
        ("cot", 4, 1),
        ("cot_attention", 3, 0),
        ("selective_kernel", 3, 0),
        ("sk_attention", 4, 0),
        ("coord_attention", 1, 0),
    ],
)
def test_blocks(block, folded, kept):
    done = fuse(lively(create_block(block, 32).double()), (1, 32, 6, 5))
    assert (len(done.folded), len(done.kept)) == (folded, kept)
    assert done.max_difference < 1e-12


def test_grafted_model():
    model = lively(timm.create_model("resnet10t"))
    plain = fuse(model, (1, 3, 32, 32))
    grafted = vg.graft(model, "cot", "layer3.0.conv1", how="parallel", example=(1, 3, 32, 32))
    gate = vg.graft(model, "coord_attention", "layer2.0.bn2", how="after", example=(1, 3, 32, 32))
    lively(model)
    for name, parameter in model.named_parameters():
        if name.endswith("scale"):
            parameter.data.fill_(0.5)
    done = check(
        model,
        torch.randn(1, 3, 32, 32),
        {
            *plain.folded,
            *(f"layer3.0.conv1.graft.block.block.{n}" for n in COT),
            "layer2.0.bn2.graft.block.norm",
        }
        - {"layer3.0.bn1", "layer2.0.bn2"},
        {"layer3.0.bn1", "layer2.0.bn2", "layer3.0.conv1.graft.block.block.norm"},
    )
    assert "hooks into it" in done.kept["layer3.0.bn1"]
    assert grafted.sites
    assert gate.sites


COT = ("key_norm", "kernel_reduce_norm", "value_norm", "select_norm")


def test_refusals():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match=r"^fuse: the model is in training mode, .* call eval\(\)"):
        fuse(model, X)
    model.eval()[1].train()
    with pytest.raises(ValueError, match=r"^fuse: 1 is in training mode"):
        fuse(model, X)
    model.eval()
    with pytest.raises(ValueError, match=r"^fuse: Sequential does not say what it takes; pass an"):
        fuse(model)
    with pytest.raises(
        ValueError, match=r"^fuse: Sequential does not run on the example \(Runtime"
    ):
        fuse(model, (1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"^fuse: the model is on the meta device"):
        fuse(nn.Conv2d(3, 4, 3, device="meta").eval(), (1, 3, 8, 8))
    noisy = one_pair(lambda m, x: m.norm(m.conv(x)) + torch.rand(1))
    with pytest.raises(RuntimeError, match=r"^fuse: the model gives other values each time"):
        fuse(noisy, X)


def test_leaves_the_random_state():
    model, state = one_pair(lambda m, x: m.norm(m.conv(x))), torch.get_rng_state()
    fuse(model, X)
    assert torch.equal(torch.get_rng_state(), state)
