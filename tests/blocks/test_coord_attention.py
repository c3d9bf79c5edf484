import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tests.contract import Case
from visgraft.blocks import CoordAttention


def randomised(channels=8):
    return Case("coord_attention", channels).build().double().eval()


@pytest.mark.parametrize(
    ("options", "hidden"),
    [
        ({"channels": 16}, 8),
        ({"channels": 256}, 8),
        ({"channels": 512}, 16),
        ({"channels": 64, "reduction": 4}, 16),
        ({"channels": 64, "min_hidden": 3}, 3),
    ],
)
def test_width_of_the_bottleneck(options, hidden):
    assert CoordAttention(**options).reduce.out_channels == hidden


def test_parameters_are_the_papers():
    block = CoordAttention(512)
    assert sum(p.numel() for p in block.parameters()) == 25_648
    assert block.starts_as_identity is False


def test_gate_is_a_product_of_a_row_and_a_column():
    block, x = randomised(), torch.rand(2, 8, 6, 4, dtype=torch.float64) + 0.5
    gate = block(x) / x
    assert ((gate > 0) & (gate < 1)).all()
    assert_close(gate * gate[:, :, :1, :1], gate[:, :, :, :1] * gate[:, :, :1])


def test_each_gate_follows_its_own_axis():
    """What changes in one row alone moves the gate of that row most."""
    block, x = randomised(), torch.rand(1, 8, 6, 4, dtype=torch.float64)
    for axis, size in ((2, 6), (3, 4)):
        for place in range(size):
            louder = x.clone()
            louder.select(axis, place).mul_(3)
            change = (block(louder) / louder - block(x) / x).abs().mean((0, 1, 5 - axis))
            assert change.argmax() == place


def test_rows_and_columns_are_not_interchangeable():
    block, x = randomised(), torch.randn(1, 8, 5, 5, dtype=torch.float64)
    turned = block(x.mT).mT
    assert (turned - block(x)).abs().max() > 1e-2
    block.expand_h, block.expand_w = block.expand_w, block.expand_h
    assert_close(block(x), turned)


def test_gates_survive_an_enlargement_of_the_map():
    """Means, not pooling of a fixed size: repeating each pixel repeats the result."""
    block, x = randomised(), torch.randn(1, 8, 5, 3, dtype=torch.float64)
    large = x.repeat_interleave(3, 2).repeat_interleave(2, 3)
    assert_close(block(large), block(x).repeat_interleave(3, 2).repeat_interleave(2, 3))


def test_statistics_are_those_of_both_strips():
    block = CoordAttention(16).train()
    x = torch.randn(2, 16, 5, 9)
    block(x)
    strips = torch.cat([x.mean(3), x.mean(2)], 2).unsqueeze(3)
    reduced = nn.functional.conv2d(strips, block.reduce.weight, block.reduce.bias)
    assert_close(block.norm.running_mean, 0.1 * reduced.mean((0, 2, 3)))


def test_trains_on_one_pixel():
    CoordAttention(16).train()(torch.randn(1, 16, 1, 1)).sum().backward()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reduction": 2.5}, r"CoordAttention: reduction must be an integer >= 1, got 2\.5"),
        ({"reduction": 0}, r"CoordAttention: reduction must be an integer >= 1, got 0"),
        ({"min_hidden": False}, r"CoordAttention: min_hidden must be an integer >= 1, got False"),
    ],
)
def test_rejects_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        CoordAttention(8, **arguments)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(1, 4, 3, 3), r"CoordAttention: expected \(B, 8, H, W\), got \(1, 4, 3, 3\)"),
        (torch.zeros(1, 8, 3), r"expected \(B, 8, H, W\), got \(1, 8, 3\)"),
        (torch.zeros(1, 8, 3, 3).bool(), r"expected a floating-point map, got torch\.bool"),
    ],
)
def test_rejects_inputs(x, message):
    with pytest.raises(ValueError, match=message):
        CoordAttention(8)(x)
