"""Networks that have no argument for their width, or too coarse a one."""

import pytest
import torch
from torch import nn

from tests.study.test_widening import macs, parameters
from visgraft.models import create_model
from visgraft.models._width_layouts import Groups
from visgraft.models._width_resizing import resized
from visgraft.study.widening import WideningError, widen


class Branches(nn.Module):
    """A convolution for each way in which channels depend on each other."""

    def __init__(self):
        super().__init__()
        self.pretrained_cfg, self.num_classes = {"input_size": (3, 8, 8)}, 5
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(16, 12, 1, groups=4)
        self.joined = nn.BatchNorm2d(20)
        self.gated = nn.Conv2d(20, 6, 1)
        self.scale = nn.Parameter(torch.full((3, 1, 1), 0.5))
        self.register_buffer("blur", torch.arange(3.0).view(3, 1, 1, 1))
        self.fc = nn.Linear(3 * 4, 5)

    def get_classifier(self):
        return self.fc

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = self.joined(torch.cat([x, self.grouped(self.depthwise(x))], 1))
        value, gate = self.gated(x).chunk(2, 1)
        x = value * gate.sigmoid() * self.scale
        x = torch.conv2d(x, self.blur, groups=x.shape[1])
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


class Attention(nn.Module):
    """Heads and the channels that are read off the input stay; what is between layers grows."""

    def __init__(self, residual):
        super().__init__()
        self.pretrained_cfg, self.num_classes = {"input_size": (3, 4, 4)}, 5
        self.residual = residual
        self.embed = nn.Conv2d(3, 8, 2, stride=2)
        self.qkv = nn.Linear(8, 24)
        self.fc1 = nn.Linear(8, 16)
        self.fc2 = nn.Linear(16, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        batch, count, channels = x.shape
        q, k, v = self.qkv(x).reshape(batch, count, 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).reshape(batch, count, channels)
        x = x + y if self.residual else y
        return self.head(self.fc2(self.fc1(x).relu()).mean(1))


class Silent(nn.Module):
    """Takes the first channels by their number, has a layer for training alone, and a table."""

    def __init__(self):
        super().__init__()
        self.pretrained_cfg, self.num_classes = {"input_size": (3, 4, 4)}, 5
        self.conv = nn.Conv2d(3, 8, 1)
        self.fc1 = nn.Linear(16, 10)
        self.aux = nn.Linear(10, 10)
        self.fc2 = nn.Linear(10, 5)
        self.register_buffer("table", torch.zeros(1))

    def forward(self, x):
        x = self.conv(x).narrow(1, 0, 8).mean(1).flatten(1)
        if len(self.table) != x.shape[1]:
            self.table = torch.ones_like(x[0])
        x = self.fc1(x * self.table)
        return self.fc2(x + self.aux(x) if self.training else x)


def shapes(model):
    return {name: tuple(p.shape) for name, p in model.named_parameters() if p.ndim > 1}


@pytest.mark.parametrize(("name", "more"), [("vgg11", 1.02), ("vgg11", 1.2), ("vgg11_bn", 1.05)])
def test_parameters_match_where_there_is_no_argument(name, more):
    target = int(parameters(name) * more)
    found = widen(name, {}, target, lambda a: parameters(name, **a))
    assert list(found.arguments) == ["widened"]
    assert parameters(name, **found.arguments) == found.size
    assert found.size == pytest.approx(target, rel=0.01)


def test_macs_match_and_given_arguments_count():
    given = {"widened": 1.1}
    target = int(macs("resnet10_small", **given) * 1.05)
    found = widen("resnet10_small", given, target, lambda a: macs("resnet10_small", **a))
    assert list(found.arguments) == ["widened"]
    assert macs("resnet10_small", **found.arguments) == pytest.approx(target, rel=0.01)
    assert 1.1 < found.arguments["widened"] < 1.15


def test_coarse_arguments_give_way():
    def measure(arguments):
        if "channels" in arguments and arguments["channels"] != [16, 32, 64, 128]:
            return 2 * parameters("resnet10_small")  # no step between
        return parameters("resnet10_small", **arguments)

    target = int(parameters("resnet10_small") * 1.05)
    found = widen("resnet10_small", {}, target, measure)
    assert list(found.arguments) == ["widened"]
    assert parameters("resnet10_small", **found.arguments) == pytest.approx(target, rel=0.01)


def test_refusals_say_what_to_do():
    def measure(arguments):
        if "widened" in arguments:
            raise ValueError("model 'vgg11' fixes all of its numbers of channels")
        return 2**27

    with pytest.raises(
        WideningError, match=r"^vgg11 cannot be widened: model 'vgg11' fixes all of"
    ):
        widen("vgg11", {}, 2**28, measure)
    with pytest.raises(
        WideningError, match=r"larger network in place of it, as a variant with model"
    ):
        widen("vgg11", {}, 2**28, measure)


def test_channels_grow_together():
    model = resized("branches", Branches(), 1.5, {})
    stem, gated = model.stem.out_channels, model.gated.out_channels
    assert stem in (12, 13)  # rounded down or up
    assert gated in (8, 10)  # two halves
    grouped = model.grouped.out_channels
    assert grouped in (16, 20)  # four groups
    assert model.grouped.in_channels == 2 * stem == model.depthwise.out_channels
    assert model.depthwise.groups == stem
    assert model.norm.num_features == len(model.norm.running_var) == stem
    assert model.joined.num_features == stem + grouped == model.gated.in_channels
    assert len(model.scale) == len(model.blur) == gated // 2
    assert shapes(model)["fc.weight"] == (5, 4 * gated // 2)
    assert model.fc.in_features == 2 * gated
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 5)


@pytest.mark.parametrize("residual", [True, False])
def test_what_is_fixed_stays(residual):
    model = resized(f"attention {residual}", Attention(residual), 1.5, {})
    assert shapes(model) == {
        "embed.weight": (8, 3, 2, 2),
        "qkv.weight": (24, 8),
        "fc1.weight": (24, 8),
        "fc2.weight": (12, 24),
        "head.weight": (5, 12),
    }


def test_what_would_go_wrong_without_an_error_stays():
    model = resized("silent", Silent(), 1.5, {})
    assert len(model.table) == 1  # it is made by the first run
    assert shapes(model) == {
        "conv.weight": (8, 3, 1, 1),
        "fc1.weight": (15, 16),
        "aux.weight": (15, 15),
        "fc2.weight": (5, 15),
    }


def test_nothing_to_grow():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    model.pretrained_cfg, model.num_classes = {"input_size": (3, 2, 2)}, 5
    with pytest.raises(ValueError, match=r"model 'plain' fixes all of its numbers of channels"):
        resized("plain", model, 1.5, {})


def test_where_weights_start():
    torch.manual_seed(0)
    base = Branches()
    torch.manual_seed(0)
    wide = resized("started", Branches(), 2.0, {})
    old, new = base.gated.weight, wide.gated.weight
    ratio = (old.shape[1] / new.shape[1]) ** 0.5
    torch.testing.assert_close(new[:6, :20], old * ratio)
    distances = (new.flatten()[:, None] - ratio * old.flatten()).abs().min(1).values
    assert distances.max() < 1e-7  # new channels are of the same distribution
    assert torch.equal(wide.scale, torch.full_like(wide.scale, 0.5))
    assert torch.equal(wide.norm.weight, torch.ones(16))
    assert wide.blur.flatten().tolist() == [0, 1, 2, 0, 1, 2]
    assert not torch.equal(new[6:12], new[:6])


def test_one_is_the_network_itself():
    torch.manual_seed(0)
    base = create_model("resnet10_small").state_dict()
    torch.manual_seed(0)
    same = create_model("resnet10_small", widened=1.0).state_dict()
    assert all(torch.equal(same[name], tensor) for name, tensor in base.items())


def test_weights_of_a_widened_network_can_be_loaded_and_its_maps_counted():
    model = create_model("resnet10_small", widened=1.3, in_chans=1, num_classes=3)
    again = create_model("resnet10_small", widened=1.3, in_chans=1, num_classes=3)
    again.load_state_dict(model.state_dict())
    images = torch.randn(2, 1, 32, 32)
    assert torch.equal(model.eval()(images), again.eval()(images))
    maps = model.forward_intermediates(images, intermediates_only=True)
    counted = [entry["num_chs"] for entry in model.feature_info]
    assert counted[-len(maps) :] == [m.shape[1] for m in maps]
    assert counted[-1] == model.num_features > 128
    model.reset_classifier(7)
    assert model(images).shape == (2, 7)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"widened": 0}, "model 'resnet18': widened must be a positive number, got 0"),
        ({"widened": "2"}, "widened must be a positive number, got '2'"),
        ({"widened": 1.1, "features_only": True}, "takes either features_only or widened, not bo"),
        ({"widened": float("nan")}, "must be a positive number, got nan"),
        ({"widened": 1.1, "pretrained": True}, "takes either pretrained or widened, not both"),
        ({"widened": 1.1, "checkpoint_path": "w.pt"}, "either checkpoint_path or widened"),
    ],
)
def test_what_a_widened_network_cannot_have(arguments, text):
    with pytest.raises(ValueError, match=text):
        create_model("resnet18", **arguments)


def test_layouts():
    groups = Groups()
    a, b, c = groups.add(6), groups.add(4), groups.add(10)
    groups.equate(groups.joined([a, b], [6, 4]), c)  # c consists of both
    assert groups.resolve(c) == (*a, *b)
    assert groups.cut(c, [6, 4]) == [a, b]
    groups.scaled(a, 1, 3)
    numbers = {group: {0: 9, 1: 5}[group] for group in groups.free()}
    assert groups.length(c, 10, numbers) == 14
    assert all(groups.numbers(f)[0] % 3 == 0 for f in (0.4, 1.1, 1.7, 2.3))
    sizes = [groups.numbers(1 + i / 50)[1] for i in range(60)]
    assert sizes == sorted(sizes)
    assert groups.numbers(1.0) == {0: 6, 1: 4}
    assert groups.freeze(c)
    assert not groups.freeze(a)
    assert groups.length(c, 10, groups.numbers(2.0)) == 10


def test_layouts_of_parts_that_stay():
    groups = Groups()
    a, b = groups.add(6), groups.add(10)
    groups.equate(groups.joined([a, None], [6, 4]), b)
    assert groups.length(b, 10, groups.numbers(2.0)) == 16
    c, d = groups.add(8), groups.add(8)
    groups.freeze(d)
    groups.equate(c, d)
    assert groups.length(c, 8, groups.numbers(2.0)) == 8
    e, f = groups.add(8), groups.add(8)
    groups.scaled(f, 1, 4)
    groups.equate(e, f)
    sizes = {groups.length(e, 8, groups.numbers(1 + i / 10)) for i in range(20)}
    assert sizes <= {8, 12, 16, 20, 24}
    assert len(sizes) > 2
