"""Where blocks go, how they are fitted to a layer, and what is refused."""

import copy
import warnings

import pytest
import torch
from torch import nn

from tests.surgery import models
from visgraft.blocks import ContextualTransformer, CoordAttention, GlobalContext, list_blocks
from visgraft.surgery import find_sites, graft

SHAPE = (1, 3, 32, 32)
X = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))


def sequence(*layers):
    return nn.Sequential(models.conv(3, 32), *layers)


def test_gates_go_after_and_mixers_beside_a_convolution():
    net = sequence(models.conv(32, 32), nn.ReLU())
    gates = graft(net, "coord_attention", "0", example=SHAPE)
    mixers = graft(net, "cot", "1", example=SHAPE)
    assert [row.how for row in (*gates.rows, *mixers.rows)] == ["after", "parallel"]
    assert mixers.rows[0].notes == ("beside the layer, which stays",)
    assert isinstance(net[0].graft.block, CoordAttention)
    assert isinstance(net[1].graft.block, ContextualTransformer)
    assert [type(layer) for layer in net] == [nn.Conv2d, nn.Conv2d, nn.ReLU]


def test_a_mixer_goes_after_a_layer_that_is_no_convolution():
    net = sequence(nn.BatchNorm2d(32))
    assert graft(net, "cot", "1", example=SHAPE).rows[0].how == "after"


def test_options_and_aliases_reach_the_block():
    net = sequence(models.conv(32, 32))
    graft(net, "coord_attention", "0", example=SHAPE, reduction=2)
    graft(net, "CoXtLayer", "1", example=SHAPE)
    assert net[0].graft.block.reduce.out_channels == 16
    assert net[1].graft.block.groups == 2


def test_paper_start_replaces_the_layer_under_all_its_names():
    model = models.SharedLayer().double().eval()
    calls = []
    handle = model.first.register_forward_hook(lambda *_: calls.append(1))
    old = model.first
    done = graft(model, "cot", "second", how="replace", start="paper", example=SHAPE)
    assert isinstance(model.first, ContextualTransformer)
    assert model.second is model.first
    assert {p.dtype for p in model.first.parameters()} == {torch.float64}
    assert not model.first.training
    assert (done.rows[0].kept, done.rows[0].tensors) == (0, 2)
    model(X.double())
    assert calls == [1, 1, 1]
    handle.remove()
    model(X.double())
    assert calls == [1, 1, 1]
    with done.disabled():
        assert model.first is old
        assert model.second is old
    assert model.second is not old
    block = model.first
    model.first.register_forward_hook(lambda *_: calls.append(2))
    done.undo()
    assert len(old._forward_hooks) == 1
    assert len(block._forward_hooks) == 0


def test_hooks_of_a_block_of_its_own_survive_a_replacement():
    seen = []

    def make(site):
        block = nn.Conv2d(site.in_channels, site.out_channels, 1)
        block.register_forward_hook(lambda *_: seen.append("block"))
        return block

    net = sequence(models.conv(32, 32))
    net[1].register_forward_hook(lambda *_: seen.append("layer"))
    done = graft(net, make, "1", how="replace", start="paper", example=SHAPE)
    net(X)
    assert seen == ["block", "layer"]
    assert done.rows[0].key == "1"
    done.undo()
    net(X)
    assert seen == ["block", "layer", "layer"]


def test_a_block_around_the_layer_leaves_the_hooks_on_it():
    net, seen = sequence(models.conv(32, 32)), []
    net[1].register_forward_hook(lambda *_: seen.append(1))
    old, around = net[1], nn.Sequential(net[1], nn.ReLU())
    done = graft(net, lambda _: around, "1", how="replace", start="paper", example=SHAPE)
    net(X)
    assert seen == [1]
    done.undo()
    assert net[1] is old


@pytest.mark.parametrize("bias", [True, False])
def test_a_block_that_can_hold_the_weights_replaces_the_layer_exactly(bias, toy_blocks):
    net = sequence(nn.Conv2d(32, 64, 3, 2, padding=1, bias=bias)).eval()
    net[1].weight.requires_grad_(False)
    before, weight = net(X), net[1].weight
    done = graft(net, "transplant", "1", example=SHAPE)
    assert isinstance(net[1], models.Transplant)
    assert torch.equal(net(X), before)
    assert done.max_difference == 0.0
    assert torch.equal(net[1].weight, weight)
    assert not net[1].weight.requires_grad
    assert net[1].shift.requires_grad
    row = done.rows[0]
    assert (row.how, row.kept, row.tensors) == ("replace", 1 + bias, 1 + bias)
    assert row.notes[0] == "holds the layer's weights"
    assert done.totals.kept == done.totals.tensors == 3 + bias
    assert done.totals.new == 1


@pytest.mark.parametrize("name", list_blocks())
@pytest.mark.parametrize("stride", [1, 2])
def test_every_block_of_the_catalogue_starts_from_the_same_output(name, stride):
    net = sequence(models.conv(32, 32, stride), nn.ReLU()).eval()
    before, state = net(X), copy.deepcopy(net.state_dict())
    options = {"min_hidden": 8, "groups": 4} if name == "selective_kernel" else {}
    if name == "spd_conv" and stride == 1:
        with pytest.raises(ValueError, match=r"does not fit at 1 of 1 sites: 1 \(.*stride >= 2"):
            graft(net, name, "1", example=SHAPE)
        return
    done = graft(net, name, "1", example=SHAPE, **options)
    torch.testing.assert_close(net(X), before, rtol=1e-5, atol=1e-5)
    assert done.rows[0].how == "replace" or torch.equal(net(X), before)
    assert net.load_state_dict(state, strict=False).unexpected_keys == []
    torch.testing.assert_close(net(X), before, rtol=1e-5, atol=1e-5)
    done.undo()
    assert torch.equal(net(X), before)


def test_aliases_preset_the_options_of_a_transplant(toy_blocks):
    net = sequence(models.conv(32, 32))
    graft(net, "bottomless", "1", example=SHAPE)
    assert net[1].shift is None


def test_a_transplant_says_what_it_cannot_hold(toy_blocks):
    net = sequence(nn.Conv2d(32, 32, 5, padding=2), nn.ReLU())
    with pytest.raises(ValueError, match=r"1 \(Transplant: takes over plain 3 x 3 convolutions\)"):
        graft(net, "transplant", "1", how="replace", example=SHAPE)
    with pytest.raises(ValueError, match=r"2 \(transplant takes over convolutions, not ReLU\)"):
        graft(net, "transplant", "2", how="replace", example=SHAPE)


def test_a_block_that_cannot_hold_the_layer_goes_beside_it_with_its_kernel():
    layer = nn.Conv2d(
        32, 64, 5, 2, padding=4, dilation=2, groups=4, padding_mode="reflect", bias=False
    )
    net = sequence(layer).eval()
    before = net(X)
    done = graft(net, "deform_conv", "1", example=SHAPE)
    assert done.rows[0].how == "parallel"
    assert done.rows[0].notes[0].startswith("beside the layer, which stays: outside the map the bl")
    assert done.rows[0].notes[1:] == ("stride 2",)
    block = net[1].graft.block
    assert (block.groups, block.weight.shape) == (4, layer.weight.shape)
    assert block.geometry == ((5, 5), (2, 2), (4, 4), (2, 2))
    assert torch.equal(net(X), before)
    assert done.plan["sites"][0]["how"] == "parallel"
    done.undo()
    own = graft(net, "deform_conv", "1", example=SHAPE, groups=1, kernel_size=3, dilation=1)
    assert net[1].graft.block.weight.shape == (64, 32, 3, 3)
    own.undo()
    with pytest.raises(ValueError, match=r"1 \(DeformConv.from_conv: outside the map the block re"):
        graft(net, "deform_conv", "1", how="replace", example=SHAPE)


@pytest.mark.parametrize(
    ("layer", "pool"),
    [
        (nn.Conv2d(32, 32, 3, 2, padding=1), (3, 2, 1)),
        (nn.Conv2d(32, 32, 7, 2, padding=3), (3, 2, 1)),
        (nn.Conv2d(32, 32, 3, 2), (3, 2, 0)),
        (nn.Conv2d(32, 32, 2, 2), (2, 2, 0)),
        (nn.Conv2d(32, 32, 4, 4), (4, 4, 0)),
        (nn.Conv2d(32, 32, 2, 2, padding=1), (2, 2, 1)),
        (nn.Conv2d(32, 32, 3, 3, dilation=2, padding="valid"), (5, 3, 0)),
    ],
)
def test_a_mixer_without_stride_gets_pooling_that_fits_at_every_size(layer, pool, toy_blocks):
    net = sequence(layer).eval()
    done = graft(net, "pooled", "1", example=SHAPE)
    averaging = net[1].graft.block.pool
    assert (averaging.kernel_size, averaging.stride, averaging.padding) == pool
    assert done.plan["sites"][0]["pool"] == list(pool)
    assert done.rows[0].notes[1].endswith(f"average pooling of stride {pool[1]} before the block")
    assert done.max_difference == 0.0
    for size in range(28, 35):
        net(torch.zeros(1, 3, size, size + 1))


def test_a_layer_that_pads_by_the_size_of_the_map_gets_pooling(toy_blocks):
    from timm.layers import Conv2dSame

    net = sequence(Conv2dSame(32, 32, 3, 2))
    graft(net, "pooled", "1", example=SHAPE)
    for size in (31, 32, 33):
        net(torch.zeros(1, 3, size, size))


def test_a_mixer_with_stride_and_out_channels_gets_both(toy_blocks):
    net = sequence(models.conv(32, 32, stride=2), models.conv(32, 64, stride=2))
    done = graft(net, "cot", "1", example=SHAPE)
    assert done.rows[0].notes == (
        "beside the layer, which stays",
        "stride 2 by the block's 3 x 3 average pooling",
    )
    wide = graft(net, "transplant", "2", how="parallel", example=SHAPE)
    assert wide.rows[0].notes == ("stride 2",)
    assert net[2].graft.block.out_channels == 64


def test_a_replacement_must_keep_or_offer_the_channels():
    net = sequence(models.conv(32, 64), models.conv(64, 64))
    with pytest.raises(
        ValueError,
        match=r"graft: cot does not fit at 2 of 3 sites: 0 \(cot keeps the number of channels, the "
        r"layer changes it from 3 to 32; how='parallel' can\); 1 \(cot keeps .* from 32 to 64; ",
    ):
        graft(net, "cot", "conv3x3", start="paper", example=SHAPE)
    done = graft(net, "cot", "conv3x3", start="paper", example=SHAPE, strict=False)
    assert [site.path for site in done.sites] == ["2"]
    assert [path for path, _ in done.skipped] == ["0", "1"]
    assert "skipped 0: cot keeps the number of channels" in done.table()


def test_beside_a_layer_that_changes_the_channels_a_block_is_followed_by_a_projection():
    net = sequence(models.conv(32, 64, stride=2), models.conv(64, 64))
    done = graft(net, "cot", ["1", "2"], example=SHAPE)
    assert done.max_difference == 0
    first, second = done.rows
    assert "then a 1 x 1 convolution from 32 to 64" in first.notes
    assert not any("1 x 1 convolution" in note for note in second.notes)
    inside = net[1].graft.block
    assert [name for name, _ in inside.named_children()] == ["block", "projection"]
    x = torch.randn(2, 32, 12, 10)
    with torch.no_grad():
        net[1].graft.scale.fill_(1.0)
        plain = nn.functional.conv2d(x, net[1].weight, net[1].bias, 2, 1)
        expected = plain + inside.projection(inside.block.eval()(x))
        torch.testing.assert_close(net[1].eval()(x), expected)


def test_a_misfit_at_another_size_of_map_is_found_out(toy_blocks):
    net = sequence(nn.Conv2d(32, 32, 2, 2))
    make = lambda site: nn.Sequential(nn.AvgPool2d(3, 2, padding=1))  # noqa: E731
    message = (
        r"from a map \(1, 32, 33, 33\) the block makes \(1, 32, 17, 17\), the layer \(1, 32, 16"
    )
    with pytest.raises(ValueError, match=message):
        graft(net, make, "1", how="parallel", example=SHAPE)


def test_a_shared_layer_is_checked_at_all_its_sizes():
    model = models.SharedLayer()
    fixed = lambda site: nn.Sequential(nn.LayerNorm([32, 32, 32]))  # noqa: E731
    with pytest.raises(ValueError, match=r"first \(Given normalized_shape"):
        graft(model, fixed, "first", example=SHAPE)
    done = graft(model, "coord_attention", "conv3x3", example=SHAPE)
    assert [site.path for site in done.sites] == ["stem", "first"]
    assert model.second.graft is model.first.graft
    assert done.rows[1].macs == done.totals.macs[1] - done.totals.macs[0] - done.rows[0].macs


def test_a_function_may_leave_sites_out():
    model = models.FunctionalSkip()
    make = lambda site: GlobalContext(site.out_channels) if site.stage == 2 else None  # noqa: E731
    done = graft(model, make, "conv3x3", example=SHAPE)
    assert [site.path for site in done.sites] == ["down", "third", "fourth"]
    with pytest.raises(ValueError, match=r"graft: the function made no block at any of 6 sites"):
        graft(models.FunctionalSkip(), lambda site: None, "conv3x3", example=SHAPE)
    with pytest.raises(ValueError, match=r"the function made int, not a module"):
        graft(models.FunctionalSkip(), lambda site: 3, "conv3x3", example=SHAPE)


@pytest.mark.parametrize(
    ("at", "paths"),
    [
        ("stage2/conv3x3", ["down", "third", "fourth"]),
        ("f*", ["first", "fourth"]),
        ("stage1/f*", ["first"]),
        (["fourth", "stem", "stage1/block_end"], ["stem", "second", "fourth"]),
        (lambda site: site.stride == (2, 2), ["down"]),
        ([lambda site: site.stage == 0, "third"], ["stem", "third"]),
    ],
)
def test_at(at, paths):
    done = graft(models.FunctionalSkip(), "coord_attention", at, example=SHAPE)
    assert [site.path for site in done.sites] == paths


def test_the_outermost_match_wins():
    model = models.Containers()
    done = graft(model, "coord_attention", "body*", example=SHAPE)
    assert [(row.site.path, row.site.kind, row.key) for row in done.rows] == [
        ("body", "layer", "body.1.1.graft")
    ]


def test_two_names_for_one_map():
    with pytest.raises(ValueError, match=r"body \(gives the same map as body\.1\)|body\.1 \(gives"):
        graft(models.Containers(), "coord_attention", ["body", "body.1"], example=SHAPE)


def test_a_layer_inside_a_replaced_one():
    model = models.Containers()
    make = lambda site: nn.Conv2d(site.in_channels, site.out_channels, 1)  # noqa: E731
    message = r"body\.1\.0 \(is inside body\.1, which would be replaced\)"
    with pytest.raises(ValueError, match=message):
        graft(model, make, ["body.1", "body.1.0"], how="replace", start="paper", example=SHAPE)


@pytest.mark.parametrize("path", ["body", "body.1"])
def test_a_container_can_have_a_block_beside_it(path):
    model = models.Containers().eval()
    before = model(X)["only"]
    make = lambda site: nn.Conv2d(site.in_channels, site.out_channels, 1)  # noqa: E731
    done = graft(model, make, path, how="parallel", example=SHAPE)
    assert done.rows[0].key == "body.1.1.graft"
    assert torch.equal(model(X)["only"], before)
    with torch.no_grad():
        done.parameters()[0].add_(1)
    assert not torch.equal(model(X)["only"], before)


@pytest.mark.parametrize(
    ("at", "message"),
    [
        (
            "layer9.*",
            r"^graft: at='layer9\.\*' matches nothing; top-level layers: .*stem.*; sites of this "
            r"model: 6 conv3x3, 1 downsample, 2 block_end in stages 0, 1, 2$",
        ),
        ("thrid", r"at='thrid' matches nothing; nearest: third; sites of this model"),
        ("conv3", r"at='conv3' matches nothing; nearest: conv3x3; sites"),
        ("stage7/conv3x3", r"at='stage7/conv3x3' matches nothing; sites .* in stages 0, 1, 2"),
        ("stage_end", r"at='stage_end' matches nothing; sites of this model"),
        (["stem", "nowhere"], r"at='nowhere' matches nothing"),
        (
            "head",
            r"at='head' names 'head', which returns no map \(B, C, H, W\) when the model runs",
        ),
        (
            lambda site: False,
            r"the predicate at=<function .*> accepts no site; sites of this model",
        ),
        ([], r"graft: at must be a path pattern, .* got \[\]"),
        (3, r"graft: at must be a path pattern, .* got 3"),
    ],
)
def test_at_that_names_nothing(at, message):
    with pytest.raises(ValueError, match=message):
        graft(models.FunctionalSkip(), "coord_attention", at, example=SHAPE)


def test_a_layer_that_is_never_called():
    for name in ("unused", "many"):
        with pytest.raises(
            ValueError, match=rf"names '{name}', which is never called when the model"
        ):
            graft(models.Containers(), "coord_attention", name, example=SHAPE)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"block": "coord_atention"}, r"no block 'coord_atention'; nearest: coord_attention"),
        ({"block": CoordAttention}, r"graft: block must be a name of the catalogue or a function"),
        ({"block": CoordAttention(32)}, r"graft: block must be a name .* got CoordAttention\("),
        ({"how": "befor"}, r"how must be one of 'replace', 'after', 'parallel', None, got 'befor'"),
        ({"start": "identiy"}, r"start must be one of .*, got 'identiy'; nearest: 'identity'"),
        (
            {"reductoin": 4},
            r"coord_attention has no option 'reductoin'; nearest: reduction; it takes",
        ),
        (
            {"block": lambda site: None, "ratio": 2},
            r"options \(ratio\) are for blocks of the catalogue",
        ),
    ],
)
def test_orders_that_make_no_sense(kwargs, message):
    kwargs = {"block": "coord_attention", "at": "conv3x3", "example": SHAPE, **kwargs}
    with pytest.raises(ValueError, match=message):
        graft(models.FunctionalSkip(), **kwargs)


def test_grafting_twice_at_one_site():
    net = sequence(nn.ReLU())
    graft(net, "coord_attention", "0", example=SHAPE)
    with pytest.raises(ValueError, match=r"0 \(has a graft already; undo that one first\)"):
        graft(net, "global_context", "0", example=SHAPE)
    with pytest.raises(ValueError, match=r"0 \(holds a graft, which would go with it"):
        graft(net, lambda _: models.conv(3, 32), "0", how="replace", start="paper", example=SHAPE)
    with pytest.raises(ValueError, match=r"at='0\.graft\.\*' matches nothing"):
        graft(net, "global_context", "0.graft.*", example=SHAPE)
    assert [site.path for site in find_sites(net, SHAPE)] == ["0"]


def test_a_frozen_layer_is_said_to_be_frozen():
    net = sequence(nn.ReLU()).requires_grad_(False)
    done = graft(net, "coord_attention", "0", example=SHAPE)
    assert done.rows[0].notes == ("the layer is frozen, the new tensors are not",)
    assert all(p.requires_grad for p in done.parameters())
    assert {n for n, p in net.named_parameters() if p.requires_grad} == {
        n for n, _ in net.named_parameters() if n.startswith("0.graft.")
    }


def test_a_layer_whose_weight_a_hook_makes_is_not_replaced():
    with pytest.warns(FutureWarning):
        normed = nn.utils.weight_norm(models.conv(32, 32))
    net = sequence(normed)
    with pytest.raises(ValueError, match=r"1 \(a hook makes its weight \(weight norm, pruning\)"):
        graft(net, "cot", "1", start="paper", example=SHAPE)
    assert graft(net, "cot", "1", example=SHAPE).max_difference == 0.0


def quantised():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(
            nn.Sequential(models.conv(3, 8), nn.Flatten(), nn.Linear(8, 8)), {nn.Linear}
        )


def lazy():
    return nn.Sequential(nn.LazyConv2d(8, 3))


def in_place_compiled():
    net = sequence(nn.ReLU())
    net.compile(backend="eager")
    return net


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: torch.compile(sequence(nn.ReLU()), backend="eager"),
            r"the model is compiled by tor",
        ),
        (in_place_compiled, r"graft: the model is compiled by torch.compile; graft it first"),
        (
            lambda: nn.DataParallel(sequence(nn.ReLU())),
            r"is wrapped in DataParallel; graft its \.mod",
        ),
        (lazy, r"the layer '0' is lazy and has no weights yet; run the model once"),
        (quantised, r"the layer '2' is quantised; graft the model first"),
        (lambda: "resnet18", r"graft: model must be a torch\.nn\.Module, got str"),
    ],
)
def test_models_that_cannot_be_grafted(make, message):
    with pytest.raises(ValueError, match=message):
        graft(make(), "coord_attention", "0", example=SHAPE)


def test_a_script_module_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(sequence(nn.ReLU()))
    with pytest.raises(ValueError, match=r"the model is a ScriptModule, whose layers cannot be"):
        graft(scripted, "coord_attention", "0", example=SHAPE)


def test_device_dtype_and_mode_follow_the_layer():
    net = sequence(nn.Identity(), nn.BatchNorm2d(32)).double()
    net[1].eval()
    graft(net, "coord_attention", "1", example=SHAPE)
    holder = net[1].graft
    assert {p.dtype for p in holder.parameters()} == {torch.float64}
    assert not holder.training
    assert not holder.block.norm.training
    assert net[2].training


def test_meta_device():
    with torch.device("meta"):
        net = sequence(models.conv(32, 32))
        done = graft(net, "cot", "1", example=SHAPE)
    assert all(t.is_meta for t in net.state_dict().values())
    assert "max difference" not in str(done)
    with pytest.raises(ValueError, match=r"max_difference: the model is on the meta device"):
        _ = done.max_difference


def test_blocks_are_seeded_by_the_global_generator_alone():
    states = []
    for _ in range(2):
        torch.manual_seed(7)
        net = sequence(models.conv(32, 32))
        graft(net, "cot", "1", example=SHAPE)
        states.append(net.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
