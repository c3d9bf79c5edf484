"""SE-CoTNetD: what the authors' code says of it."""

import copy

import pytest
import timm
import torch
from timm.layers import BlurPool2d
from torch import nn
from torch.testing import assert_close

from tests.models.golden_networks import GoldenNetwork
from tests.models.golden_parts import check_part, golden_part
from tests.models.test_cotnet import EXACT, STAGES, image, randomised
from visgraft.blocks import ContextualTransformer
from visgraft.inspect import cost
from visgraft.models import create_model, network_info
from visgraft.models.se_cotnetd import BlurPool, GatedConv, GatedConvBottleneck


def kinds(network):
    """Returns C or G for each bottleneck of each stage."""
    letters = {ContextualTransformer: "C", GatedConv: "G"}
    return [
        "".join(letters[type(block.conv2)] for block in network.get_submodule(stage))
        for stage in STAGES
    ]


# --- the authors' values -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["c32s1_6x7", "c16s2_7x6"])
def test_gated_convolution_is_the_authors(name):
    case = golden_part(f"splitattn-official-{name}")
    options = case.record["kwargs"]
    block = GatedConvBottleneck(8, options["out_channels"], stride=options.get("stride", 1))
    check_part(case, block.conv2)


@pytest.mark.parametrize(("name", "taps"), [("se_cotnetd_50", 0), ("se_cotnetd_152", 9)])
def test_cost_is_the_authors(name, taps):
    """Without the blur of the 152-layer network, which they count as convolutions."""
    record = GoldenNetwork(name).record
    counted = cost(create_model(name, device="meta"), (1, 3, 224, 224))
    blur = sum(taps * width * (56 >> i) ** 2 for i, width in enumerate((64, 128, 256, 512)))
    assert counted.params == record["params"]
    assert counted.macs + blur == (
        record["macs_conv_matmul"] + record["macs_elementwise_aggregation"]
    )


@pytest.mark.parametrize("name", ["se_cotnetd_50", "se_cotnetd_101", "se_cotnetd_152"])
def test_catalogue_has_the_authors_figures(name):
    recorded, ours = GoldenNetwork(name).record["published"], network_info(name).published
    assert ours.params == float(recorded["params"].removesuffix("M"))
    assert (ours.gmacs, ours.top1, ours.top5) == tuple(
        recorded[k] for k in ("gflops", "top1", "top5")
    )
    assert ("at 256" in ours.note) == (name == "se_cotnetd_152")


@pytest.mark.parametrize("size", [(2, 2), (2, 5), (7, 6), (9, 9)])
@pytest.mark.parametrize("stride", [1, 2])
def test_blur_is_binomial_and_reflected(size, stride):
    x = image(2, 3, *size).double().requires_grad_()
    theirs = BlurPool2d(3, filt_size=3, stride=stride, dtype=torch.float64)
    results = []
    for pool in (BlurPool(3, stride=stride), theirs):
        y = pool(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), x)))
    assert_close(results[0], results[1])
    assert not list(BlurPool(3).state_dict())


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 1)])
def test_blur_of_a_line_continues_it(size):
    x = image(1, 2, *size)
    y = BlurPool(2, stride=1)(x)
    along = 2 if size[1] == 1 else 3
    padded = torch.cat([x.narrow(along, 0, 1), x, x.narrow(along, -1, 1)], along)
    n = size[along - 2]
    parts = [padded.narrow(along, start, n) for start in (0, 1, 2)]
    assert_close(y, (parts[0] + 2 * parts[1] + parts[2]) / 4)
    assert_close(BlurPool(2)(x), y[:, :, ::2, ::2])


# --- structure -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected", "stem"),
    [
        ("se_cotnetd_50", ["GGG", "GGGG", "CGCGCG", "CCC"], 64),
        ("se_cotnetd_101", ["GGG", "GGGG", "CG" * 11 + "C", "CCC"], 128),
        ("se_cotnetd_152", ["GGG", "G" * 8, "CG" * 18, "CCC"], 128),
    ],
)
def test_stages(name, expected, stem):
    network = create_model(name, device="meta")
    blurred = name == "se_cotnetd_152"
    assert kinds(network) == expected
    assert network.feature_info[0] == {"num_chs": stem, "reduction": 2, "module": "act1"}
    assert [each["reduction"] for each in network.feature_info] == [2, 4, 8, 16, 32]
    for stage in STAGES:
        first, *rest = network.get_submodule(stage)
        pool = first.downsample[0]
        assert isinstance(pool, nn.AvgPool2d)
        assert (pool.kernel_size, pool.stride, pool.ceil_mode) == (2, 2, True)
        assert not pool.count_include_pad
        strided = first.conv2 if isinstance(first.conv2, ContextualTransformer) else None
        stride = strided.stride if strided else first.conv2.conv.stride[0]
        assert stride == (1 if blurred else 2)
        assert isinstance(first.aa, BlurPool if blurred else nn.Identity)
        for block in rest:
            assert block.downsample is None
            assert isinstance(block.aa, nn.Identity)
        assert all(isinstance(b.act1, nn.ReLU) and isinstance(b.act3, nn.ReLU) for b in rest)
    gated = network.layer1[0].conv2
    assert isinstance(gated.act0, nn.SiLU)
    assert isinstance(gated.act1, nn.SiLU)


def test_configuration_is_the_authors():
    for name, size, crop in (("se_cotnetd_50", 224, 0.875), ("se_cotnetd_152", 256, 0.888)):
        cfg = timm.get_pretrained_cfg(name)
        assert (cfg.input_size, cfg.crop_pct) == ((3, size, size), crop)
        assert (cfg.mean, cfg.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        assert (cfg.interpolation, cfg.first_conv) == ("bicubic", "conv1.0")


@pytest.mark.parametrize("options", [{}, {"aa_layer": None}], ids=["blurred", "strided"])
@pytest.mark.parametrize("size", [(64, 64), (33, 65), (1, 1), (20, 97)])
def test_any_image_size(options, size):
    network = randomised("test_se_cotnetd", **options)
    with torch.no_grad():
        last, between = network.forward_intermediates(image(2, 3, *size))
    for value, each in zip(between, network.feature_info, strict=True):
        expected = [-(-n // each["reduction"]) for n in size]
        assert list(value.shape) == [2, each["num_chs"], *expected]
        assert torch.isfinite(value).all()
    assert_close(last, between[-1], **EXACT)


def test_blur_follows_the_unit():
    """At stride 1 the unit sees the whole map, and its result is blurred."""
    first = randomised("test_se_cotnetd").layer2[0]
    seen = {}
    first.conv2.register_forward_hook(lambda *_: seen.update(unit=_[2].clone()))
    first.conv3.register_forward_pre_hook(lambda _, inputs: seen.update(last=inputs[0].clone()))
    first(image(2, 64, 7, 6))
    assert seen["unit"].shape == (2, 16, 7, 6)
    assert_close(seen["last"], BlurPool2d(16)(seen["unit"]))


def test_output_stride_dilates_the_gated_convolutions_alone():
    network = create_model("test_se_cotnetd", aa_layer=None, output_stride=8)
    dilations = {
        path.removesuffix(".conv"): module.dilation[0]
        for path, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and module.dilation != (1, 1)
    }
    assert dilations == {"layer3.1.conv2": 2}
    assert network.forward_features(image(2, 3, 64, 48)).shape == (2, 192, 8, 6)


def test_a_gated_convolution_dilated_by_two_sees_every_second_position():
    """Weights trained at stride 32 give the same values at output stride 16 where they overlap."""
    block = GatedConvBottleneck(24, 16, dilation=2).eval()
    plain = GatedConvBottleneck(24, 16).eval()
    plain.load_state_dict(block.state_dict())
    x = image(1, 16, 8, 10)
    block.conv2.fc2.weight.data.zero_()  # the gate reads the whole map
    plain.conv2.fc2.weight.data.zero_()
    assert_close(block.conv2(x)[:, :, ::2, ::2], plain.conv2(x[:, :, ::2, ::2]))


# --- initialisation, placement, errors -----------------------------------------------------------


def test_initialisation():
    torch.manual_seed(0)
    network = create_model("test_se_cotnetd")
    gated = network.layer1[0].conv2.conv
    assert 0.9 < gated.weight.std().item() * (9 * gated.out_channels / 2) ** 0.5 < 1.1
    for path, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == (0 if path.endswith(".bn3") else 1)).all(), path


def test_built_on_the_meta_device_and_filled_later():
    network, x = randomised("test_se_cotnetd"), image(2, 3, 40, 33)
    empty = create_model("test_se_cotnetd", device="meta").eval().to_empty(device="cpu")
    empty.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert_close(empty(x), network(x), **EXACT)
        assert_close(copy.deepcopy(network)(x), network(x), **EXACT)


def test_networks_do_not_share_their_plan():
    """A second network of the same entry point has the same stages."""
    assert kinds(create_model("test_se_cotnetd", device="meta")) == ["G", "G", "CGC", "C"]
    assert kinds(create_model("test_se_cotnetd", device="meta")) == ["G", "G", "CGC", "C"]


def test_a_single_image_in_training():
    network = create_model("test_se_cotnetd")
    with pytest.raises(ValueError, match=r"GatedConv: training needs at least 2 .*got 1 \(one per"):
        network(image(1, 3, 64, 64))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert network(image(1, 3, 64, 64)).shape == (1, 1000)
