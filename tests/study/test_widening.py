from itertools import pairwise

import pytest
import torch

from visgraft.inspect import cost
from visgraft.models import create_model
from visgraft.models._width import constructor_arguments
from visgraft.study.widening import WideningError, widen


def parameters(name, **arguments):
    with torch.device("meta"):
        model = create_model(name, num_classes=10, **arguments)
    return sum(p.numel() for p in model.parameters())


def macs(name, **arguments):
    with torch.device("meta"):
        return cost(create_model(name, num_classes=10, **arguments), (1, 3, 32, 32)).macs


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("resnet10_small", 1.04),
        ("resnet10_small", 1.3),
        ("resnet18", 1.04),
        ("resnet18", 1.3),
        ("mobilenetv2_100", 1.04),
        ("efficientnet_b0", 1.3),
    ],
)
def test_parameters_match_within_one_percent(name, more):
    target = int(parameters(name) * more)
    found = widen(name, {}, target, lambda a: parameters(name, **a))
    size = parameters(name, **found.arguments)
    assert size == found.size
    assert abs(size - target) <= 0.01 * target
    assert size > parameters(name)


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        pytest.param("convnext_atto", "dims", marks=pytest.mark.slow),
        ("test_vit", "embed_dim"),
        pytest.param("regnety_004", "w0", marks=pytest.mark.slow),
        ("mobilenetv3_small_050", "channel_multiplier"),
        ("spd_resnet18", "channels"),
        ("gernet_s", "width_factor"),
        ("rexnet_100", "width_mult"),
        ("efficientvit_b0", "widths"),
    ],
)
def test_families_are_widened_by_their_own_arguments(name, argument):
    target = int(parameters(name) * 1.2)
    found = widen(name, {}, target, lambda a: parameters(name, **a))
    assert argument in found.arguments
    assert parameters(name, **found.arguments) == pytest.approx(target, rel=0.01)


def test_macs_and_given_arguments():
    given = {"channels": (8, 16, 24, 32)}
    target = int(macs("resnet10_small", **given) * 1.5)
    found = widen("resnet10_small", given, target, lambda a: macs("resnet10_small", **a))
    assert macs("resnet10_small", **found.arguments) == pytest.approx(target, rel=0.01)
    narrow, wide = given["channels"], found.arguments["channels"]
    assert len(wide) == 4
    assert sum(wide) > sum(narrow)
    assert wide == sorted(wide)


def test_all_stages_are_widened_alike():
    target = int(parameters("resnet18") * 1.3)
    found = widen("resnet18", {}, target, lambda a: parameters("resnet18", **a))
    for now, before in zip(found.arguments["channels"], (64, 128, 256, 512), strict=True):
        assert 1.05 < now / before < 1.25


def test_smaller_targets_make_it_narrower():
    target = parameters("resnet10_small") // 2
    found = widen("resnet10_small", {}, target, lambda a: parameters("resnet10_small", **a))
    assert found.size == pytest.approx(target, rel=0.01)
    assert found.error == abs(found.size - target) / target


def test_too_coarse_widths_say_how_near():
    def measure(arguments):
        if "widened" in arguments:
            raise ValueError("no other way")
        return parameters("test_cotnet", **arguments)

    target = int(parameters("test_cotnet") * 1.04)  # its widths are multiples of 8
    with pytest.raises(WideningError, match=r"within 1% of 133,793: the nearest is 142,431, 6\.5%"):
        widen("test_cotnet", {}, target, measure)


def test_widths_that_fixed_entries_do_not_take():
    widths = [1.0, 1.1, 1.3]
    sizes = [parameters("mobilenetv2_100", channel_multiplier=w) for w in widths]
    assert sizes[0] == parameters("mobilenetv2_100")
    assert all(a < b for a, b in pairwise(sizes))
    assert parameters("mobilenetv2_100", channel_multiplier=1.4) == parameters("mobilenetv2_140")
    model = create_model("test_efficientnet", channel_multiplier=1.5, num_features=200)
    assert model.num_features == 200
    assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)
    assert parameters("mobilenetv2_100") == sizes[0]  # nothing stays behind
    with pytest.raises(ValueError, match="'resnet18' takes no argument 'channel_multiplier'"):
        create_model("resnet18", channel_multiplier=1.1)


def test_constructor_arguments_are_those_of_the_entry_and_the_defaults():
    known = constructor_arguments("resnet10_small", num_classes=7)
    assert known["channels"] == (16, 32, 64, 128)
    assert known["num_classes"] == 7
    assert constructor_arguments("convnext_atto")["dims"] == (40, 80, 160, 320)
    assert constructor_arguments("resnet18")["cardinality"] == 1
    handed_on = constructor_arguments("dcn_resnet50")
    assert handed_on["channels"] == (64, 128, 256, 512)
    assert handed_on["layers"] == (3, 4, 6, 3)
    assert constructor_arguments("gernet_s")["width_factor"] == 1.0  # a field of its configuration
