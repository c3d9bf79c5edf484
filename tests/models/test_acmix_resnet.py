import pytest
import timm
import torch
from torch import nn
from torch.nn.functional import relu
from torch.testing import assert_close

from visgraft.blocks import ACmix, load_published
from visgraft.models import network_info
from visgraft.models.acmix_resnet import ACmixBottleneck

EXACT = {"rtol": 0.0, "atol": 0.0}


def randomised(module):
    """Returns the module with nothing in it zero or one, so that each term counts."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                fan_in = tensor[0].numel() if tensor.ndim > 1 else 4
                noise = torch.randn(tensor.shape, generator=generator) / fan_in**0.5
                tensor.copy_(noise.abs() + 0.5 if key.endswith("var") else noise)
    return module


def published(model):
    """Returns the state dict as the authors' code would name and wrap it."""
    names = {
        "query": "conv1",
        "key": "conv2",
        "value": "conv3",
        "position": "conv_p",
        "mix": "fc",
        "shift": "dep_conv",
        "attention_scale": "rate1",
        "convolution_scale": "rate2",
    }
    state = {}
    for key, value in model.state_dict().items():
        path, found, inner = key.partition(".conv2.")
        part, *rest = inner.split(".")
        theirs = ".".join([f"{path}.conv2", names[part], *rest]) if found else key
        state[f"module.{theirs}"] = value
    return {"epoch": 90, "state_dict": state}


@pytest.mark.parametrize(
    ("name", "depths"),
    [
        ("resnet26_acmix", [1, 2, 4, 1]),
        ("resnet38_acmix", [2, 3, 5, 2]),
        ("resnet50_acmix", [3, 4, 6, 3]),
    ],
)
def test_structure(name, depths):
    """The parameters, which the recorded networks pin, are up to 2 % below the published figure."""
    model = timm.create_model(name, device="meta")
    assert [len(getattr(model, f"layer{stage}")) for stage in range(1, 5)] == depths
    mixers = [m for m in model.modules() if isinstance(m, ACmix)]
    assert {(m.num_heads, m.attention_size, m.shift.kernel_size) for m in mixers} == {
        (4, 7, (3, 3))
    }
    params = sum(p.numel() for p in model.parameters())
    assert network_info(name).published.params == pytest.approx(params / 1e6, rel=0.02)


def test_every_bottleneck_is_mixed_and_strided_once_per_stage():
    model = timm.create_model("test_resnet_acmix", layers=(2, 2, 2, 2))
    for stage in range(1, 5):
        first, second = getattr(model, f"layer{stage}")
        assert isinstance(first.conv2, ACmix)
        assert isinstance(second.conv2, ACmix)
        assert (first.conv2.stride, second.conv2.stride) == (1 if stage == 1 else 2, 1)


def test_bottleneck():
    """1 x 1, ACmix and 1 x 1, each normalised, around the shortcut."""
    block = randomised(ACmixBottleneck(32, 8)).eval()
    x = torch.randn(2, 32, 6, 5)
    y = relu(block.bn1(block.conv1(x)))
    y = relu(block.bn2(block.conv2(y)))
    assert_close(block(x), relu(block.bn3(block.conv3(y)) + x))


def test_start():
    """The shifts are the paper's, the other convolutions He's, both paths count by one half."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet_acmix", channels=(64, 64, 64, 64))
    for mixer in (m for m in model.modules() if isinstance(m, ACmix)):
        shifts = torch.eye(9).view(9, 3, 3).expand(64, 9, 3, 3)
        assert_close(mixer.shift.weight, shifts, **EXACT)
        assert mixer.attention_scale == mixer.convolution_scale == 0.5
        for layer in (mixer.query, mixer.key, mixer.value):
            assert layer.weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.1)
    assert not model.layer1[0].bn3.weight.any()
    assert timm.create_model("test_resnet_acmix", zero_init_last=False).layer1[0].bn3.weight.all()


def test_start_can_be_repeated():
    model = randomised(timm.create_model("test_resnet_acmix"))
    kept = model.layer2[0].conv2.shift.weight.clone()
    before = model.layer2[0].conv1.weight.clone()
    model.init_weights()
    assert_close(model.layer2[0].conv2.shift.weight, kept, **EXACT)
    assert (model.layer2[0].conv1.weight != before).any()


@pytest.mark.parametrize("size", [(32, 32), (1, 1), (70, 33), (9, 130)])
def test_any_image(size):
    """Maps as small as 1 x 1, odd ones and narrow ones."""
    model = randomised(timm.create_model("test_resnet_acmix", num_classes=5)).eval()
    x = torch.randn(2, 3, *size)
    features = model.forward_features(x)
    assert features.shape == (2, 128, -(-size[0] // 32), -(-size[1] // 32))
    y = model(x)
    assert y.isfinite().all()
    assert_close(torch.cat([model(image[None]) for image in x]), y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("output_stride", "dilations"), [(16, [1, 1, 1, 1]), (8, [1, 1, 1, 2])])
def test_output_stride(output_stride, dilations):
    """The first block of a stage keeps the dilation of the stage before it, as in timm's ResNet."""
    model = timm.create_model("test_resnet_acmix", output_stride=output_stride)
    mixers = [getattr(model, f"layer{stage}")[0].conv2 for stage in range(1, 5)]
    assert [m.dilation for m in mixers] == dilations
    x = torch.zeros(1, 3, 64, 64)
    assert model.forward_features(x).shape[2:] == (64 // output_stride,) * 2
    assert [info["reduction"] for info in model.feature_info][-1] == output_stride


def test_dilation_spreads_both_paths():
    """On every second position, a dilated block computes what the plain one does on those alone."""
    plain = randomised(ACmixBottleneck(32, 8)).eval()
    spread = ACmixBottleneck(32, 8, dilation=2).eval()
    for block in (plain, spread):
        nn.init.zeros_(block.conv2.position.weight)  # a position is relative to the whole map
    state = plain.state_dict()
    spread.load_state_dict(state)
    x = torch.randn(2, 32, 15, 17)
    assert_close(spread(x)[..., ::2, ::2], plain(x[..., ::2, ::2]), rtol=1e-4, atol=1e-5)


def test_layout_of_the_authors_is_recognised():
    source = randomised(timm.create_model("test_resnet_acmix"))
    target = timm.create_model("test_resnet_acmix")
    report = load_published(target, published(source))
    assert report.layout == "LeapLabTHU/ACmix"
    assert report.unwrapped == ("state_dict", "module.")
    for key, value in source.state_dict().items():
        assert_close(target.state_dict()[key], value, **EXACT)


def test_trains_every_parameter():
    """All but the bias of the position, which a softmax does not see."""
    model = randomised(timm.create_model("test_resnet_acmix", num_classes=3)).double().eval()
    model(torch.randn(2, 3, 64, 64).double()).square().sum().backward()
    sizes = {name: p.grad.abs().max().item() for name, p in model.named_parameters()}
    dead = {name for name, size in sizes.items() if size <= 1e-12 * max(sizes.values())}
    assert dead == {n for n in sizes if n.endswith("conv2.position.bias")}


def test_groups_are_refused():
    with pytest.raises(ValueError, match=r"cardinality must be 1 because ACmix has no .*got 2"):
        timm.create_model("test_resnet_acmix", cardinality=2)


def test_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"ACmix: out_channels .*\b6\b"):
        timm.create_model("test_resnet_acmix", channels=(6, 8, 8, 8))


@pytest.mark.parametrize("name", ["resnet26_acmix", "resnet38_acmix", "resnet50_acmix"])
def test_images_are_prepared_as_by_the_authors(name):
    cfg = timm.get_pretrained_cfg(name)
    assert (cfg.interpolation, cfg.crop_pct, cfg.input_size) == ("bilinear", 0.875, (3, 224, 224))
    assert (cfg.mean, cfg.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
