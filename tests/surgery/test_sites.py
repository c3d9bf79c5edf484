"""Sites, stages and map sizes, found on shapes alone."""

import copy
import threading

import pytest
import torch
import torchvision
from torch import nn

from tests.surgery import models
from visgraft.surgery import Site, find_sites, graft


def of_kind(sites, kind):
    return [site.path for site in sites if site.kind == kind]


@pytest.mark.parametrize("source", ["timm", "torchvision"])
def test_resnet18(source, build):
    model = build("resnet18") if source == "timm" else torchvision.models.resnet18()
    sites = find_sites(model)
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert of_kind(sites, "conv3x3") == [f"{b}.conv{i}" for b in blocks for i in (1, 2)]
    assert of_kind(sites, "block_end") == [f"{b}.bn2" for b in blocks]
    assert of_kind(sites, "stage_end") == [f"layer{stage}.1" for stage in (1, 2, 3, 4)]
    firsts = [f"layer{stage}.0.conv1" for stage in (2, 3, 4)]
    assert of_kind(sites, "downsample") == ["conv1", *firsts]
    for site in sites[1:]:
        stage = int(site.path[5])
        assert site.stage == stage
        assert site.out_channels == 32 * 2**stage
        assert site.feature_size == (112 // 2**stage, 112 // 2**stage)
    assert sites[0] == Site("conv1", "downsample", 0, 3, 64, (7, 7), (2, 2), (112, 112))
    assert sites[8] == Site("layer2.0.conv1", "conv3x3", 2, 64, 128, (3, 3), (2, 2), (28, 28))
    assert sites[7] == Site("layer1.1", "stage_end", 1, 64, 64, None, (1, 1), (56, 56))


def test_dilated_resnet_keeps_its_stages():
    import timm

    sites = find_sites(timm.create_model("resnet18", output_stride=8), (1, 3, 64, 96))
    assert of_kind(sites, "stage_end") == [f"layer{stage}.1" for stage in (1, 2, 3, 4)]
    last = sites[-1]
    assert (last.stage, last.out_channels, last.feature_size) == (4, 512, (8, 12))


def test_mobilenetv3(build):
    sites = find_sites(build("mobilenetv3_small_100"))
    ends = [(s.path, s.stage, s.out_channels) for s in sites if s.kind == "block_end"]
    assert ends == [
        ("blocks.1.1.bn3", 1, 24),
        ("blocks.2.1.bn3", 2, 40),
        ("blocks.2.2.bn3", 2, 40),
        ("blocks.3.1.bn3", 3, 48),
        ("blocks.4.1.bn3", 4, 96),
        ("blocks.4.2.bn3", 4, 96),
    ]
    assert of_kind(sites, "conv3x3") == [
        "conv_stem",
        "blocks.0.0.conv_dw",
        "blocks.1.0.conv_dw",
        "blocks.1.1.conv_dw",
    ]
    assert [s.stage for s in sites if s.path == "blocks.4.0.conv_dw"] == [4]


def test_convnext(build):
    sites = find_sites(build("convnext_atto"))
    depths = (2, 2, 6, 2)
    blocks = [f"stages.{i}.blocks.{j}" for i, depth in enumerate(depths) for j in range(depth)]
    assert of_kind(sites, "block_end") == [f"{block}.drop_path" for block in blocks]
    assert of_kind(sites, "stage_end") == [
        f"stages.{i}.blocks.{d - 1}" for i, d in enumerate(depths)
    ]
    assert of_kind(sites, "downsample") == [
        "stem.0",
        *[f"stages.{i}.downsample.1" for i in (1, 2, 3)],
    ]
    assert [s.stage for s in sites if s.kind == "downsample"] == [0, 2, 3, 4]
    assert [s.stage for s in sites if s.kind == "stage_end"] == [1, 2, 3, 4]


def test_torchvision_mobilenet_v2():
    sites = find_sites(torchvision.models.mobilenet_v2(), (2, 3, 96, 96))
    assert of_kind(sites, "block_end")[:3] == [f"features.{i}.conv.3" for i in (3, 5, 6)]
    assert of_kind(sites, "stage_end") == [f"features.{i}" for i in (3, 6, 10, 13, 16)]


def test_grafts_do_not_move_the_sites(build):
    def heavy(site):
        width = site.in_channels
        layers = [nn.Conv2d(width, width, 1) for _ in range(5)]
        return nn.Sequential(*layers, nn.Conv2d(width, site.out_channels, 1, site.stride[0]))

    model, shape = build("resnet18"), (1, 3, 64, 64)
    before = find_sites(model, shape)
    graft(model, heavy, "layer*.downsample.0", how="parallel", example=shape)
    graft(model, "coord_attention", "block_end", example=shape)
    graft(model, heavy, "layer1", how="parallel", start="paper", example=shape)
    assert find_sites(model, shape) == before


def test_an_addition_in_a_module_of_its_own():
    class Adds(nn.Module):
        def forward(self, a, b):
            return a + b

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = models.conv(8, 8)
            self.add = Adds()

        def forward(self, x):
            return self.add(x, self.conv(x)).relu()

    sites = find_sites(nn.Sequential(models.conv(3, 8), Block(), Block()), (1, 3, 32, 32))
    assert of_kind(sites, "block_end") == ["1.conv", "2.conv"]
    assert of_kind(sites, "stage_end") == ["2"]


def test_functional_skip():
    sites = find_sites(models.FunctionalSkip(), (1, 3, 32, 32))
    assert of_kind(sites, "block_end") == ["second", "fourth"]
    assert of_kind(sites, "stage_end") == []
    stages = {site.path: site.stage for site in sites}
    assert stages == {"stem": 0, "first": 1, "second": 1, "down": 2, "third": 2, "fourth": 2}


def test_shared_layer_is_one_site():
    sites = find_sites(models.SharedLayer(), (1, 3, 32, 32))
    assert of_kind(sites, "conv3x3") == ["stem", "first"]
    assert sites[1].other_paths == ("second",)
    assert sites[1].feature_size == (32, 32)


def test_without_residual_blocks_a_stage_is_a_size_of_map():
    model = nn.Sequential(
        models.conv(3, 8), nn.MaxPool2d(2), models.conv(8, 8), models.conv(8, 8, stride=2)
    )
    sites = find_sites(model, (1, 3, 32, 32))
    assert [(s.path, s.stage) for s in sites if s.kind == "conv3x3"] == [
        ("0", 0),
        ("2", 1),
        ("3", 2),
    ]


def test_lateral_additions_of_a_pyramid_are_no_blocks():
    sites = find_sites(models.Pyramid(), (1, 3, 32, 32))
    assert {site.kind for site in sites} == {"conv3x3", "downsample"}


def test_maps_with_channels_last_in_the_shape_are_no_sites():
    sites = find_sites(models.ChannelsLastBlock(), (1, 3, 32, 32))
    assert of_kind(sites, "downsample") == ["patches"]
    assert len(sites) == 1


def test_pointwise_stride_is_no_downsampling():
    assert find_sites(nn.Sequential(nn.Conv2d(3, 8, 1, stride=2)), (1, 3, 32, 32)) == []


def test_example_may_be_a_tensor_a_tuple_or_a_dict():
    class TwoInputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = models.conv(3, 8)

        def forward(self, image, scale):
            return self.conv(image * scale)

    image, scale = torch.randn(1, 3, 20, 24), torch.ones(1)
    for example in ((image, scale), {"image": image, "scale": scale}):
        (site,) = find_sites(TwoInputs(), example)
        assert site.feature_size == (20, 24)
    (site,) = find_sites(nn.Sequential(models.conv(3, 8)), image)
    assert site.feature_size == (20, 24)


def test_size_of_the_example_comes_from_the_model():
    import timm

    sites = find_sites(timm.create_model("test_resnet", in_chans=1))
    assert sites[0].in_channels == 1
    assert sites[0].feature_size == (80, 80)


def test_touches_nothing(build):
    model = build("mobilenetv3_small_100")
    model.blocks[2].train()
    seen = []
    model.conv_stem.register_forward_hook(lambda *_: seen.append(1))
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    state = torch.get_rng_state()
    find_sites(model)
    assert seen == []
    assert [m.training for m in model.modules()] == modes
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert torch.equal(torch.get_rng_state(), state)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(
        type(t) in (nn.Parameter, torch.Tensor) for t in model.state_dict(keep_vars=True).values()
    )


def test_meta_device():
    with torch.device("meta"):
        model = torchvision.models.resnet18()
    assert len(find_sites(model)) == 32


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (
            nn.Sequential(nn.Linear(4, 4)),
            None,
            r"find_sites: Sequential has no convolution to tell the shape of its input; pass exam",
        ),
        (
            nn.Sequential(models.conv(3, 8), nn.Flatten(), nn.Linear(8 * 32 * 32, 5)),
            None,
            r"find_sites: Sequential does not run on the example of shape \(1, 3, 224, 224\) "
            r"\(RuntimeError: .*\); pass example=, a tensor or a shape such as \(1, 3, 32, 32\)",
        ),
        (models.conv(3, 8), "big", r"find_sites: example must be a tensor, a shape .* got 'big'"),
        (models.conv(3, 8), (), r"find_sites: example must be a tensor, a shape .* got \(\)"),
    ],
)
def test_says_why_it_cannot_run(model, example, message):
    with pytest.raises(ValueError, match=message):
        find_sites(model, example)


def test_says_that_shapes_depend_on_values(caplog):
    class Picks(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = models.conv(3, 8)

        def forward(self, x):
            return self.conv(x)[x.mean((1, 2, 3)) > 0]

    with pytest.raises(
        ValueError, match=r"the shapes inside Picks depend on values .* model\.back"
    ):
        find_sites(Picks())
    assert caplog.records == []


def test_says_that_it_cannot_copy():
    model = nn.Sequential(models.conv(3, 8))
    model.lock = threading.Lock()
    with pytest.raises(
        ValueError, match=r"find_sites: Sequential cannot be copied by copy\.deepcopy"
    ):
        find_sites(model)


class HandsOnItsParameter(nn.Module):
    """Gives a parameter from module to module, as class tokens are."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 3, 1, 1))
        self.join = Join()
        self.conv = models.conv(3, 8)

    def forward(self, x):
        return self.conv(self.join(x, self.token.expand(x.shape[0], -1, -1, -1)))


class Join(nn.Module):
    def forward(self, x, token):
        return x + token


def test_a_parameter_that_is_handed_on():
    model = HandsOnItsParameter()
    assert [site.path for site in find_sites(model, (2, 3, 16, 16))] == ["conv"]
    assert model.token.requires_grad
