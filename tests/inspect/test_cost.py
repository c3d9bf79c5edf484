"""Parameters and multiply-accumulate operations against numbers counted by hand."""

import copy

import pytest
import timm
import torch
from torch import nn

from visgraft.inspect import cost
from visgraft.surgery import graft


def test_resnet18():
    model = timm.create_model("resnet18")
    counted = cost(model, (1, 3, 224, 224))
    assert (counted.params, counted.macs) == (11_689_512, 1_814_073_344)
    assert counted.by_module["fc"] == (513_000, 512_000)
    assert counted.by_module["layer1.0.conv1"] == (36_864, 36_864 * 56 * 56)
    assert counted.by_module[""] == (counted.params, counted.macs)
    tops = [name for name, _ in model.named_children()]
    assert sum(counted.by_module[name][1] for name in tops) == counted.macs


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (1, 3, 10, 12), 3 * 8 * 9 * 120),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), (2, 8, 10, 12), 2 * 8 * 9 * 120),
        (nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=4), (1, 8, 9, 9), 8 * 12 * 9 * 25 // 4),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 5, 5), 4 * 6 * 4 * 25),
        (nn.Linear(5, 7), (3, 5), 105),
        (nn.MultiheadAttention(8, 2, batch_first=True), None, 4 * 6 * 64 + 2 * 6 * 6 * 8),
        (nn.BatchNorm2d(4), (1, 4, 3, 3), 0),
    ],
)
def test_layers(layer, shape, macs):
    example = shape if shape is not None else (torch.zeros(1, 6, 8),) * 3
    assert cost(layer, example).macs == macs


def test_several_calls_and_shared_parameters():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(4, 4, bias=False)
            self.two = self.one
            self.three = nn.Linear(4, 4, bias=False)
            self.three.weight = self.one.weight

        def forward(self, x):
            return self.three(self.two(self.one(x)))

    counted = cost(Twice(), (1, 4))
    assert (counted.params, counted.macs) == (16, 48)
    assert counted.by_module == {"": (16, 48), "one": (16, 32), "three": (16, 16)}


def test_a_graft_is_counted_with_its_layer():
    net = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU())
    plain = cost(net, (1, 3, 16, 16))
    done = graft(net, "cot", "1", how="parallel", example=(1, 3, 16, 16))
    counted = cost(net, (1, 3, 16, 16))
    assert counted.macs - plain.macs == done.rows[0].macs
    assert counted.by_module["1.graft"] == (done.rows[0].params, done.rows[0].macs)
    assert counted.by_module["1"] == counted.by_module["1.graft"]


def test_touches_nothing():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    before, x = copy.deepcopy(model.state_dict()), torch.randn(2, 3, 8, 8)
    seen, state = [], torch.get_rng_state()
    model[0].register_forward_hook(lambda *_: seen.append(1))
    cost(model, x)
    assert seen == []
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(model.state_dict()[name], t) for name, t in before.items())


def test_computes_nothing():
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 20_000, 3, padding=1), nn.Conv2d(20_000, 50_000, 3))
    counted = cost(model, (8, 3, 1024, 1024))
    assert counted.params == 20_000 * 28 + 50_000 * (9 * 20_000 + 1)
    assert counted.trainable == counted.params


def test_text():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(nn.Conv2d(8, 8, 1)))
    model[0].requires_grad_(False)
    counted = cost(model, (1, 3, 10, 10))
    assert counted.trainable == 72
    lines = str(counted).splitlines()
    assert lines[0].split() == ["module", "parameters", "MACs", "%", "of", "MACs"]
    assert lines[2].split() == ["0", "224", "21,600", "77.1"]
    assert lines[-1].split()[-3:] == ["296", "28,000", "100.0"]
    assert lines[-1].startswith("total, on 1 x 3 x 10 x 10")
    assert "1.0" not in str(counted).split()
    assert "1.0" in counted.table(depth=None).split()
    assert repr(counted) == "Cost(params=296, macs=28000, trainable=72, shape=(1, 3, 10, 10))"


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ((1, 4, 8, 8), r"cost: Conv2d does not run on the example \(RuntimeError: Given groups=1"),
        ("x", r"cost: example must be a tensor, a shape such as \(1, 3, 224, 224\), .* got 'x'"),
        (None, r"cost: example must be a tensor, .* got None"),
    ],
)
def test_bad_example(example, message):
    with pytest.raises(ValueError, match=message):
        cost(nn.Conv2d(3, 4, 3), example)
