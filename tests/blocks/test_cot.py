import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tests.contract import Case
from visgraft.blocks import ContextualTransformer, CoTAttention
from visgraft.ops import local_aggregation


def randomised(block, channels, **options):
    return Case(block, channels, options).build().double().eval()


# --- what the paper's idea implies ---------------------------------------------------------------


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_a_value_reaches_exactly_its_neighbourhood(kernel_size):
    """The published layer mixes values between positions; the circulating one does not."""
    module = randomised("cot", 16, kernel_size=kernel_size)
    mixed = []
    handle = module.norm.register_forward_pre_hook(lambda _, inputs: mixed.append(inputs[0]))
    x = torch.randn(1, 16, 11, 9, dtype=torch.float64)
    shift = torch.zeros(1, 16, 11, 9, dtype=torch.float64)
    shift[:, :, 5, 4] = 1
    module(x)
    module.value_norm.register_forward_hook(lambda *_: _[2] + shift)
    module(x)
    handle.remove()
    touched = (mixed[0] != mixed[1]).any(1)[0]
    reach = kernel_size // 2
    expected = torch.zeros(11, 9, dtype=torch.bool)
    expected[5 - reach : 6 + reach, 4 - reach : 5 + reach] = True
    assert torch.equal(touched, expected)


def test_a_value_reaches_only_its_own_position_in_the_circulating_form():
    module = randomised("cot_attention", 8)
    x = torch.randn(1, 8, 6, 5, dtype=torch.float64)
    shift = torch.zeros_like(x)
    shift[:, :, 2, 3] = 1
    y = module(x)
    module.value_norm.register_forward_hook(lambda *_: _[2] + shift)
    touched = (module(x) != y).any(1)[0]
    assert touched.nonzero().tolist() == [[2, 3]]


def test_gate_of_the_circulating_form_sums_to_one_over_the_map():
    module = randomised("cot_attention", 8)
    nn.init.zeros_(module.value.weight)
    nn.init.zeros_(module.value_norm.weight)
    nn.init.ones_(module.value_norm.bias)  # all values are one: the gate itself is added
    x = torch.randn(2, 8, 6, 5, dtype=torch.float64)
    gate = module(x) - torch.relu(module.key_norm(module.key(x)))
    assert (gate > 0).all()
    assert_close(gate.sum((2, 3)), torch.ones(2, 8, dtype=torch.float64))


def test_output_lies_between_static_and_dynamic_context():
    module = randomised("cot", 16)
    contexts = []
    module.norm.register_forward_hook(lambda *_: contexts.append(nn.functional.silu(_[2])))
    module.key_norm.register_forward_hook(lambda *_: contexts.append(_[2].relu()))
    y = module(torch.randn(2, 16, 6, 5, dtype=torch.float64))
    low, high = torch.minimum(*contexts), torch.maximum(*contexts)
    assert ((y >= low - 1e-12) & (y <= high + 1e-12)).all()


def test_selection_follows_its_logits():
    """With a large logit, the even half of the last layer selects the dynamic context."""
    module = randomised("cot", 16)
    contexts = []
    module.norm.register_forward_hook(lambda *_: contexts.append(nn.functional.silu(_[2])))
    x = torch.randn(2, 16, 6, 5, dtype=torch.float64)
    static = torch.relu(module.key_norm(module.key(x)))
    nn.init.zeros_(module.select_expand.weight)
    for half, sign in ((0, 1), (1, -1)):
        module.select_expand.bias.data.zero_()[half::2] = 100
        y = module(x)
        assert_close(y, contexts[-1] if sign > 0 else static)


@pytest.mark.parametrize("groups", [1, 2])
def test_channels_that_share_a_kernel(groups):
    """Channels c and c + C / 8 (of one group) are summed under the same kernel."""
    module = randomised("cot", 32, groups=groups)
    seen = {}
    module.kernel_norm.register_forward_hook(lambda *_: seen.update(kernels=_[2]))
    module.value_norm.register_forward_hook(lambda *_: seen.update(value=_[2]))
    module.norm.register_forward_pre_hook(lambda _, inputs: seen.update(mixed=inputs[0]))
    module(torch.randn(1, 32, 4, 3, dtype=torch.float64))
    kernels = seen["kernels"].view(groups, 4 // groups, 9, 4, 3)
    for channel in range(32):
        half, inner = divmod(channel, 32 // groups)
        kernel = kernels[half, inner % (4 // groups)].view(1, 1, 1, 9, 4, 3)
        alone = local_aggregation(seen["value"][:, channel : channel + 1], kernel, 3)
        assert_close(seen["mixed"][:, channel], alone[:, 0])


def test_groups_mix_only_in_the_selection():
    module = randomised("cot", 32, groups=2)
    module.select_expand.weight.data.zero_()
    x = torch.randn(1, 32, 5, 4, dtype=torch.float64)
    y = module(x)
    x[:, :16] += 1
    changed = (module(x) != y).amax((0, 2, 3))
    assert changed[:16].all()
    assert not changed[16:].any()


def test_stride_is_the_average_pooling_of_the_network():
    strided, plain = randomised("cot", 16, stride=2), randomised("cot", 16)
    for size in [(7, 9), (8, 6), (1, 1), (1, 4)]:
        x = torch.randn(2, 16, *size, dtype=torch.float64)
        assert_close(strided(x), plain(nn.AvgPool2d(3, 2, padding=1)(x)))
    assert strided.state_dict().keys() == plain.state_dict().keys()


def test_shifting_the_image_shifts_the_result():
    """Inside, away from the border; the selection reads the whole map and is switched off."""
    module = randomised("cot", 16)
    module.select_expand.weight.data.zero_()
    x = torch.randn(1, 16, 9, 9, dtype=torch.float64)
    module.kernel_norm = nn.Identity()  # its statistics are those of the whole map
    y, moved = module(x), module(x.roll((2, 1), (2, 3)))
    assert_close(moved[:, :, 4:7, 3:7], y[:, :, 2:5, 2:6])


# --- defaults, sizes, errors ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"channels": 64}, 26_744),
        ({"channels": 512}, 1_661_888),
        ({"channels": 512, "groups": 2}, 1_031_104),
    ],
)
def test_parameters_are_the_papers(options, parameters):
    module = ContextualTransformer(**options, device="meta")
    assert sum(p.numel() for p in module.parameters()) == parameters
    assert (module.kernel_size, module.stride) == (3, 1)


def test_parameters_of_the_circulating_form():
    module = CoTAttention(512, device="meta")
    assert sum(p.numel() for p in module.parameters()) == 2_300_928


@pytest.mark.parametrize(("channels", "hidden"), [(16, 32), (64, 32), (128, 64), (512, 256)])
def test_width_of_the_selection(channels, hidden):
    assert ContextualTransformer(channels, device="meta").select_reduce.out_channels == hidden


def test_starts_as_pytorch_initialises():
    """The authors leave the block's own layers to PyTorch."""
    torch.manual_seed(3)
    module = ContextualTransformer(64)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            bound = layer.weight[0].numel() ** -0.5
            assert layer.weight.abs().max() <= bound
            assert layer.weight.std() > 0.4 * bound
        elif isinstance(layer, nn.BatchNorm2d | nn.GroupNorm):
            assert (layer.weight == 1).all()
            assert (layer.bias == 0).all()
    assert module.starts_as_identity is False
    assert CoTAttention.starts_as_identity is False


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (ContextualTransformer, {"channels": 12}, r"channels must be a multiple of 8 \(8 channels"),
        (
            ContextualTransformer,
            {"channels": 24, "groups": 2},
            r"channels must be a multiple of 16 \(8 channels share a kernel, in 2 groups\), got 24",
        ),
        (ContextualTransformer, {"groups": 3}, r"groups must be 1 or 2, got 3"),
        (ContextualTransformer, {"groups": True}, r"groups must be 1 or 2, got True"),
        (ContextualTransformer, {"kernel_size": 4}, r"kernel_size must be an odd integer >= 1, go"),
        (ContextualTransformer, {"kernel_size": 3.0}, r"kernel_size must be an odd .* got 3\.0"),
        (ContextualTransformer, {"kernel_size": (3, 3)}, r"odd integer >= 1, got \(3, 3\)"),
        (ContextualTransformer, {"stride": 0}, r"stride must be an integer >= 1, got 0"),
        (CoTAttention, {"channels": 6}, r"CoTAttention: channels must be a multiple of 4 .* got 6"),
        (CoTAttention, {"kernel_size": 2}, r"CoTAttention: kernel_size must be an odd .* got 2"),
    ],
)
def test_rejects_arguments(cls, arguments, message):
    with pytest.raises(ValueError, match=message):
        cls(**{"channels": 16, **arguments})


@pytest.mark.parametrize("cls", [ContextualTransformer, CoTAttention])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 8, 5, 5), r"expected \(B, 16, H, W\), got \(2, 8, 5, 5\)"),
        (torch.zeros(16, 5, 5), r"expected \(B, 16, H, W\), got \(16, 5, 5\)"),
        (torch.zeros(2, 16, 0, 5), r"expected \(B, 16, H, W\), got \(2, 16, 0, 5\)"),
        (
            torch.zeros(2, 16, 5, 5, dtype=torch.uint8),
            r"expected a floating-point map, got torch\.uint8",
        ),
    ],
)
def test_rejects_inputs(cls, x, message):
    with pytest.raises(ValueError, match=rf"{cls.__name__}: {message}"):
        cls(16)(x)


def test_training_needs_two_images():
    module = ContextualTransformer(16)
    with pytest.raises(
        ValueError,
        match=r"ContextualTransformer: training needs at least 2 values per channel for its batch "
        r"statistics, got 1 \(one per image\); use a larger batch, or call eval\(\)",
    ):
        module(torch.randn(1, 16, 9, 9))
    module(torch.randn(2, 16, 1, 1))
    module.eval()(torch.randn(1, 16, 1, 1))
    module.train()
    module.select_norm.eval()
    module(torch.randn(1, 16, 9, 9))


def test_training_the_circulating_form_needs_two_positions():
    module = CoTAttention(16)
    with pytest.raises(ValueError, match=r"CoTAttention: training .* got 1 \(batch 1, map 1 x 1\)"):
        module(torch.randn(1, 16, 1, 1))
    module(torch.randn(1, 16, 1, 2))
