from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from visgraft.blocks import SelectiveKernel, SKAttention, block_info, create_block
from visgraft.blocks.selective_kernel import _select

PAIRS = ((3, 1), (3, 2), (5, 1))
BUILDS = {
    "two": lambda: SelectiveKernel(16, groups=4, min_hidden=8),
    "three": lambda: SelectiveKernel(16, groups=4, min_hidden=8, kernels=PAIRS),
    "copy, two": lambda: SKAttention(16, kernels=(3, 5)),
    "copy, four": lambda: SKAttention(16),
}


def by_the_paper(block, x):
    """The formula, with the branches stacked."""
    maps = torch.stack([branch(x) for branch in block.branches])
    pooled = maps.sum(0).mean((2, 3), keepdim=True)
    if isinstance(block, SelectiveKernel):
        logits = block.expand(block.norm(block.reduce(pooled)).relu())
        logits = logits.unflatten(1, (len(maps), -1)).transpose(0, 1)
    else:
        hidden = block.reduce(pooled.flatten(1))
        logits = torch.stack([layer(hidden) for layer in block.expand])[..., None, None]
    return (logits.softmax(0) * maps).sum(0)


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_is_a_softmax_over_the_branches(build):
    block, x = build().double(), torch.randn(3, 16, 7, 5, dtype=torch.float64, requires_grad=True)
    ours, theirs = block(x), by_the_paper(block, x)
    assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    wanted = [x, *block.parameters()]
    gradients = [torch.autograd.grad(y.square().sum(), wanted) for y in (ours, theirs)]
    for mine, other in zip(*gradients, strict=True):
        assert_close(mine, other, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_each_branch_is_evaluated_once(build):
    block, calls = build(), Counter()
    for name, module in block.named_modules():
        if name and not list(module.children()):
            module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    block(torch.randn(3, 16, 7, 5))
    convolutions = [name for name in calls if name.endswith(".conv")]
    assert len(convolutions) == len(block.branches)
    assert set(calls.values()) == {1}
    assert all(branch.norm.num_batches_tracked == 1 for branch in block.branches)


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_branches_are_not_stacked(build):
    class Sizes(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor):
                    self.largest = max(self.largest, tensor.untyped_storage().nbytes())
            return out

    block, x = build().eval(), torch.randn(3, 16, 40, 40)
    with torch.no_grad(), Sizes() as sizes:
        block(x)
    assert sizes.largest == x.untyped_storage().nbytes()


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_equal_branches_share_equally_and_a_certain_one_wins(build):
    block, x = build().eval(), torch.randn(2, 16, 6, 7)
    for tensor in block.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.abs() + 0.1)
    maps = [branch(x) for branch in block.branches]
    for parameter in block.expand.parameters():
        parameter.data.zero_()
    assert_close(block(x), sum(maps) / len(maps), rtol=1e-5, atol=1e-6)
    wins = len(maps) - 1
    if isinstance(block, SKAttention):
        block.expand[wins].bias.data.fill_(1e3)
    else:
        block.expand.weight.data.view(len(maps), 16, -1)[wins] = 1e4
    assert_close(block(x), maps[wins])


@pytest.mark.parametrize("branches", [2, 3])
def test_shares_take_the_dtype_of_the_maps(branches):
    """Autocast on a GPU computes a softmax in float32."""
    maps = [torch.randn(2, 4, 5, 3, dtype=torch.bfloat16) for _ in range(branches)]
    logits = [torch.randn(2, 4, 1, 1) for _ in range(branches)]
    y = _select(maps, logits)
    assert y.dtype == torch.bfloat16
    expected = (torch.stack(logits).softmax(0) * torch.stack(maps)).sum(0)
    assert_close(y.float(), expected, rtol=0.02, atol=0.02)


def test_paper_defaults():
    block = SelectiveKernel(1024)
    first, second = (branch.conv for branch in block.branches)
    assert (first.kernel_size, first.dilation, first.padding) == ((3, 3), (1, 1), (1, 1))
    assert (second.kernel_size, second.dilation, second.padding) == ((3, 3), (2, 2), (2, 2))
    assert first.groups == second.groups == 32
    assert all(m.bias is None for m in block.modules() if isinstance(m, nn.Conv2d))
    assert block.norm.eps == 1e-5
    assert block.reduce.weight.shape == (64, 1024, 1, 1)  # 1024 / 16
    assert SelectiveKernel(128).reduce.weight.shape == (32, 128, 1, 1)  # the floor
    assert SelectiveKernel(64, out_channels=1024).reduce.weight.shape == (64, 1024, 1, 1)


def test_copys_defaults():
    block = SKAttention(1024, device="meta")
    convolutions = [branch.conv for branch in block.branches]
    assert [conv.kernel_size[0] for conv in convolutions] == [1, 3, 5, 7]
    assert all(conv.groups == 1 and conv.bias is not None for conv in convolutions)
    assert block.reduce.weight.shape == (64, 1024)
    for reduction, published in [(16, 22_110_240), (8, 22_192_192)]:
        block = SKAttention(512, reduction=reduction, device="meta")
        assert sum(p.numel() for p in block.parameters()) == published


def test_are_in_the_catalogue():
    assert block_info("selective_kernel").role == block_info("sk_attention").role == "mixer"
    assert isinstance(create_block("SKAttention", 8), SKAttention)
    assert not SelectiveKernel.starts_as_identity
    assert not SKAttention.starts_as_identity


def test_stride_is_in_the_branches():
    block = SelectiveKernel(16, groups=4, stride=2, out_channels=8).eval()
    for size, out in [((7, 8), (4, 4)), ((1, 5), (1, 3))]:
        assert block(torch.randn(2, 16, *size)).shape == (2, 8, *out)


def test_training_needs_two_images():
    with pytest.raises(
        ValueError, match=r"^SelectiveKernel: training needs at least 2 .*, got 1 \(one per image\)"
    ):
        SelectiveKernel(32)(torch.randn(1, 32, 5, 5))
    assert SelectiveKernel(32).eval()(torch.randn(1, 32, 1, 1)).shape == (1, 32, 1, 1)
    with pytest.raises(ValueError, match=r"^SKAttention: training needs .*batch 1, map 1 x 1"):
        SKAttention(8)(torch.randn(1, 8, 1, 1))
    assert SKAttention(8)(torch.randn(1, 8, 1, 2)).shape == (1, 8, 1, 2)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_either_works_or_says_what_is_wrong(data):
    draw, few = data.draw, st.integers(0, 3)
    kernels = tuple(draw(st.lists(st.tuples(st.integers(1, 6), few), max_size=3)))
    channels, out_channels = draw(st.sampled_from([1, 4, 6])), draw(st.sampled_from([4, 6, 0]))
    numbers = {name: draw(few) for name in ("groups", "reduction", "min_hidden", "stride")}
    size = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    options = {"kernels": kernels, "out_channels": out_channels, **numbers}
    legal = min(out_channels, *numbers.values()) > 0 and len(kernels) > 1
    legal = legal and all(size % 2 and dilation for size, dilation in kernels)
    if not legal or channels % numbers["groups"] or out_channels % numbers["groups"]:
        with pytest.raises(ValueError, match=r"^SelectiveKernel: "):
            SelectiveKernel(channels, **options)
        return
    y = SelectiveKernel(channels, **options)(torch.randn(2, channels, *size))
    assert y.shape == (2, out_channels, *(-(-n // numbers["stride"]) for n in size))
    assert torch.isfinite(y).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"kernels": ()},
            r"kernels must be at least two \(kernel_size, dilation\) pairs, .*, got \(\)",
        ),
        ({"kernels": ((3, 1),)}, r"kernels must be at least two .* pairs, .*, got \(\(3, 1\),\)"),
        ({"kernels": 3}, r"kernels must be at least two .* pairs, .*, got 3"),
        ({"kernels": "33"}, r"kernels must be at least two .* pairs, .*, got '33'"),
        ({"kernels": (3, 5)}, r"each of kernels must be a \(kernel_size, dilation\) pair, got 3"),
        ({"kernels": ((3, 1), (3, 1, 2))}, r"each of kernels must be a .* pair, got \(3, 1, 2\)"),
        ({"kernels": ((3, 1), "31")}, r"each of kernels must be a .* pair, got '31'"),
        ({"kernels": ((3, 1), (4, 1))}, r"kernel_size must be an odd integer >= 1, got 4"),
        ({"kernels": ((3, 1), (3, 0))}, r"dilation must be an integer >= 1, got 0"),
        ({"kernels": ((3, 1), (True, 1))}, r"kernel_size must be an odd integer >= 1, got True"),
        (
            {"groups": 3},
            r"channels must be a multiple of 3 \(the groups of the convolutions\), got 32",
        ),
        ({"out_channels": 48}, r"out_channels must be a multiple of 32 .*, got 48"),
        ({"out_channels": 0}, r"out_channels must be an integer >= 1, got 0"),
        ({"reduction": 2.0}, r"reduction must be an integer >= 1, got 2\.0"),
        ({"min_hidden": 0}, r"min_hidden must be an integer >= 1, got 0"),
        ({"stride": True}, r"stride must be an integer >= 1, got True"),
    ],
)
def test_rejects_arguments(options, message):
    with pytest.raises(ValueError, match=rf"^SelectiveKernel: {message}"):
        SelectiveKernel(32, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"kernels": (3,)},
            r"kernels must be at least two odd sizes, such as \(3, 5\), got \(3,\)",
        ),
        ({"kernels": 7}, r"kernels must be at least two odd sizes, such as \(3, 5\), got 7"),
        ({"kernels": (3, 4)}, r"kernel_size must be an odd integer >= 1, got 4"),
        ({"kernels": ((3, 1), (3, 2))}, r"kernel_size must be an odd integer >= 1, got \(3, 1\)"),
        (
            {"groups": 3},
            r"channels must be a multiple of 3 \(the groups of the convolutions\), got 8",
        ),
        ({"reduction": 0}, r"reduction must be an integer >= 1, got 0"),
        ({"min_hidden": 1.5}, r"min_hidden must be an integer >= 1, got 1\.5"),
    ],
)
def test_copy_rejects_arguments(options, message):
    with pytest.raises(ValueError, match=rf"^SKAttention: {message}"):
        SKAttention(8, **options)


@pytest.mark.parametrize(("name", "channels"), [("SelectiveKernel", 32), ("SKAttention", 8)])
def test_rejects_channels_and_input(name, channels):
    cls = {"SelectiveKernel": SelectiveKernel, "SKAttention": SKAttention}[name]
    with pytest.raises(ValueError, match=rf"^{name}: channels must be an integer >= 1, got 0"):
        cls(0)
    with pytest.raises(
        ValueError, match=rf"^{name}: expected \(B, {channels}, H, W\), got \(1, 3, 4"
    ):
        cls(channels)(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match=rf"^{name}: expected a floating-point map"):
        cls(channels)(torch.zeros(1, channels, 4, 4, dtype=torch.int32))
