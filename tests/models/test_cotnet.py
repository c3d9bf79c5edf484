"""CoTNet and CoTNeXt: what the paper and the authors' code say of them."""

import pytest
import timm
import torch
from timm.layers import DropPath
from timm.models.resnet import downsample_conv
from torch import nn
from torch.testing import assert_close

from tests.models.golden_networks import GoldenNetwork
from tests.models.golden_parts import check_part, golden_part
from visgraft.blocks import ContextualTransformer, layouts_of, load_published
from visgraft.inspect import cost
from visgraft.models import create_model, network_info
from visgraft.models.cotnet import CoTBottleneck
from visgraft.models.se_cotnetd import BlurPool

TINY = ["test_cotnet", "test_cotnext"]
STAGES = ("layer1", "layer2", "layer3", "layer4")
EXACT = {"rtol": 0.0, "atol": 0.0}


def randomised(name, **options):
    """Builds a network, no tensor of which is zero or one, so that each counts."""
    network = create_model(name, **options).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, tensor in network.state_dict().items():
            if key.endswith(("norm.weight", "bn1.weight", "bn3.weight", "running_var")):
                tensor.copy_(0.6 + 0.4 * torch.rand(tensor.shape, generator=generator))
            elif key.endswith(("bias", "running_mean")):
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    return network


def image(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def published_keys(network):
    """Returns the weights under the authors' names."""
    (layout,) = layouts_of(ContextualTransformer)
    theirs = {ours: published for published, ours in layout.renames.items()}
    state = {}
    for key, value in network.state_dict().items():
        head, inside, rest = key.partition(".conv2.")
        ours, _, leaf = rest.rpartition(".")
        state[f"{head}{inside}{theirs[ours]}.{leaf}" if inside else key] = value
    return state


# --- the authors' values -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["p16s1_6x7", "p16s2_7x9"])
def test_bottleneck_is_the_authors(name):
    case = golden_part(f"cotbottleneck-official-{name}")
    inplanes, planes, stride = (case.record["kwargs"][k] for k in ("inplanes", "planes", "stride"))
    projected = stride > 1 or inplanes != 4 * planes
    shortcut = downsample_conv(inplanes, 4 * planes, 1, stride=stride) if projected else None
    check_part(case, CoTBottleneck(inplanes, planes, stride, shortcut))


@pytest.mark.parametrize("name", ["cotnet50", "cotnext50_2x48d"])
def test_cost_is_the_authors(name):
    record = GoldenNetwork(name).record
    counted = cost(create_model(name, device="meta"), (1, 3, 224, 224))
    assert counted.params == record["params"]
    assert counted.macs == record["macs_conv_matmul"] + record["macs_elementwise_aggregation"]


@pytest.mark.parametrize("name", ["cotnet50", "cotnet101", "cotnext50_2x48d", "cotnext101_2x48d"])
def test_catalogue_has_the_authors_figures(name):
    recorded, ours = GoldenNetwork(name).record["published"], network_info(name).published
    assert ours.params == float(recorded["params"].removesuffix("M"))
    assert (ours.gmacs, ours.top1, ours.top5) == tuple(
        recorded[k] for k in ("gflops", "top1", "top5")
    )
    assert ours.image_size == 224
    assert network_info(name).recipe == "cotnet_advanced"


# --- structure -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layers", "widths", "groups"),
    [
        ("cotnet50", (3, 4, 6, 3), (64, 128, 256, 512), 1),
        ("cotnet101", (3, 4, 23, 3), (64, 128, 256, 512), 1),
        ("cotnext50_2x48d", (3, 4, 6, 3), (96, 192, 384, 768), 2),
        ("cotnext101_2x48d", (3, 4, 23, 3), (96, 192, 384, 768), 2),
    ],
)
def test_attention_takes_the_place_of_every_3x3_convolution(name, layers, widths, groups):
    network = create_model(name, device="meta")
    attentions = {
        stage: [block.conv2 for block in network.get_submodule(stage)] for stage in STAGES
    }
    assert tuple(len(attentions[stage]) for stage in STAGES) == layers
    for number, (stage, width) in enumerate(zip(STAGES, widths, strict=True)):
        for place, attention in enumerate(attentions[stage]):
            assert isinstance(attention, ContextualTransformer)
            assert (attention.channels, attention.groups, attention.kernel_size) == (
                width,
                groups,
                3,
            )
            assert attention.stride == (2 if number > 0 and place == 0 else 1)
    others = [
        path
        for path, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)
    ]
    assert others[0] == "conv1"
    assert all(path.endswith(".conv2.key") for path in others[1:])


def test_nothing_stands_between_the_attention_and_the_last_convolution():
    block = randomised("test_cotnet").layer2[1]
    seen = {}
    block.conv2.register_forward_hook(lambda *_: seen.update(attention=_[2].clone()))
    block.conv3.register_forward_pre_hook(lambda _, inputs: seen.update(last=inputs[0].clone()))
    block(image(2, 96, 5, 4))
    assert_close(seen["last"], seen["attention"], **EXACT)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("size", [(64, 64), (33, 65), (1, 1), (20, 97)])
def test_any_image_size(name, size):
    network = randomised(name)
    features = timm.create_model(name, features_only=True).eval()
    features.load_state_dict(network.state_dict(), strict=False)
    x = image(2, 3, *size)
    with torch.no_grad():
        maps = features(x)
        last, between = network.forward_intermediates(x)
        assert_close(network.forward_head(last), network(x), **EXACT)
    info = network.feature_info
    assert features.feature_info.channels() == [each["num_chs"] for each in info]
    for value, same, each in zip(maps, between, info, strict=True):
        expected = [-(-n // each["reduction"]) for n in size]
        assert list(value.shape) == [2, each["num_chs"], *expected]
        assert_close(value, same, **EXACT)
        assert value.std() > 0 or size == (1, 1)


def test_output_stride_keeps_the_resolution_and_does_not_dilate():
    """As in the authors' code: the first block of a stage just does not pool."""
    network, x = randomised("test_cotnet"), image(2, 3, 64, 48)
    for stride, stages in ((16, ("layer4",)), (8, ("layer3", "layer4"))):
        other = create_model("test_cotnet", output_stride=stride).eval()
        other.load_state_dict(network.state_dict())
        for stage in stages:
            first = network.get_submodule(stage)[0]
            first.conv2.pool = nn.Identity()
            first.downsample[0].stride = (1, 1)
        with torch.no_grad():
            assert_close(other(x), network(x), **EXACT)
            assert other.forward_features(x).shape[2:] == (64 // stride, 48 // stride)
        assert other.feature_info[-1]["reduction"] == stride
        assert all(m.dilation == (1, 1) for m in other.modules() if isinstance(m, nn.Conv2d))


def test_antialiasing_takes_the_place_of_the_pooling():
    network = create_model("test_cotnet", aa_layer=BlurPool)
    first = network.layer2[0]
    assert first.conv2.stride == 1
    assert isinstance(first.conv2.pool, nn.Identity)
    assert isinstance(first.aa, BlurPool)
    assert isinstance(network.layer2[1].aa, nn.Identity)
    assert network.forward_features(image(2, 3, 33, 65)).shape == (2, 192, 2, 3)


# --- initialisation and training -----------------------------------------------------------------


@pytest.mark.parametrize("name", TINY)
def test_all_convolutions_start_from_he(name):
    torch.manual_seed(0)
    network = create_model(name)
    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() >= 2000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            spread = module.weight.std().item() * (fan_out / 2) ** 0.5
            assert 0.9 < spread < 1.1, path
        if isinstance(module, nn.BatchNorm2d):
            last = path.endswith(".bn3")
            assert (module.weight == (0 if last else 1)).all(), path
    plain = create_model(name, zero_init_last=False)
    assert (plain.layer1[0].bn3.weight == 1).all()


def test_drop_path_rises_linearly():
    network = create_model("test_cotnet", drop_path_rate=0.2)
    rates = [
        block.drop_path.drop_prob if isinstance(block.drop_path, DropPath) else 0.0
        for stage in STAGES
        for block in network.get_submodule(stage)
    ]
    assert_close(rates, [0.0, 0.05, 0.1, 0.15, 0.2])


@pytest.mark.parametrize("name", [*TINY, "test_se_cotnetd"])
def test_a_step_trains_every_parameter(name):
    """In evaluation mode, because batch statistics cancel the bias in front of them."""
    network = randomised(name).double()
    network(image(3, 3, 64, 64).double()).square().sum().backward()
    sizes = {key: p.grad.abs().max().item() for key, p in network.named_parameters()}
    assert not {key for key, size in sizes.items() if not size > 1e-9 * max(sizes.values())}
    network.float().train()(image(3, 3, 64, 64)).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


# --- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TINY)
def test_checkpoints_of_the_authors_are_unwrapped(name):
    network, x = randomised(name), image(2, 3, 40, 33)
    theirs = {f"module.{key}": value for key, value in published_keys(network).items()}
    assert "module.layer1.0.conv2.key_embed.0.weight" in theirs
    other = {key: torch.zeros_like(value) for key, value in theirs.items()}
    fresh = create_model(name).eval()
    report = load_published(fresh, {"state_dict": other, "state_dict_ema": theirs}, ema=True)
    assert report.layout == "JDAI-CV/CoTNet"
    assert report.unwrapped == ("state_dict_ema", "module.")
    with torch.no_grad():
        assert_close(fresh(x), network(x), **EXACT)
        load_published(fresh, {"state_dict": other, "state_dict_ema": theirs})
        assert (fresh(x) == 0).all()


def test_a_head_of_another_size_is_refused():
    network = create_model("test_cotnet", num_classes=7)
    before = network.fc.weight.clone()
    with pytest.raises(ValueError, match=r"fc\.weight is \(1000, 192\) and should be \(7, 192\)"):
        load_published(network, published_keys(create_model("test_cotnet")))
    assert_close(network.fc.weight, before, **EXACT)


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"block_reduce_first": 2}, r"CoTBottleneck: reduce_first must be 1, .*, got 2"),
        ({"cardinality": 4}, r"ContextualTransformer: groups must be 1 or 2, got 4"),
        ({"channels": (12, 24, 32, 48)}, r"channels must be a multiple of 8 .*, got 12"),
    ],
)
def test_what_the_attention_cannot_take(options, text):
    with pytest.raises(ValueError, match=text):
        create_model("test_cotnet", **options)


def test_a_single_image_in_training():
    network = create_model("test_cotnet")
    with pytest.raises(ValueError, match=r"ContextualTransformer: training needs at least 2 .*got"):
        network(image(1, 3, 64, 64))


# --- tracing -------------------------------------------------------------------------------------

SIZES = ({0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)


@pytest.mark.slow
def test_exports_for_all_sizes():
    """The network that has all parts; the fixed size is in test_timm_contract.py."""
    network = randomised("test_se_cotnetd")
    program = torch.export.export(network, (image(2, 3, 64, 64),), dynamic_shapes=SIZES).module()
    for shape in ((3, 3, 64, 96), (2, 3, 75, 50)):
        x = image(*shape)
        assert_close(program(x), network(x), rtol=1e-4, atol=1e-4)
