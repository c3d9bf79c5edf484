import pytest
import torch
from torch.testing import assert_close

from tests.contract import Case
from visgraft.blocks import GlobalContext


def randomised(channels=16, **options):
    return Case("global_context", channels, {"reduction": 4, **options}).build().double().eval()


def test_a_new_block_returns_its_input():
    x = torch.randn(2, 64, 5, 7)
    block = GlobalContext(64)
    assert torch.equal(block(x), x)
    assert block.starts_as_identity


@pytest.mark.parametrize("fuse", [("mul",), ("add", "mul"), ("mul", "add")])
def test_a_new_multiplying_block_halves_its_input(fuse):
    x = torch.randn(2, 64, 5, 7)
    block = GlobalContext(64, fuse=fuse)
    assert_close(block(x), x / 2)
    assert not block.starts_as_identity


def test_initialisation_is_the_papers():
    torch.manual_seed(5)
    block = GlobalContext(4096, fuse=("add", "mul"))
    assert_close(block.attend.weight.std(), torch.tensor((2 / 4096) ** 0.5), rtol=0.05, atol=0)
    for zero in (block.attend.bias, *block.add.expand.parameters(), *block.mul.expand.parameters()):
        assert not zero.any()
    bound = 4096**-0.5
    assert 0.9 * bound < block.add.reduce.weight.abs().max() <= bound


def test_defaults_are_the_papers():
    block = GlobalContext(512)
    assert (block.fuse, block.mul, block.add.reduce.out_channels) == (("add",), None, 32)
    assert block.attend is not None
    assert sum(p.numel() for p in block.parameters()) == 33_889
    copy = GlobalContext(512, reduction=4, fuse=("add", "mul"))
    assert sum(p.numel() for p in copy.parameters()) == 264_449


def test_adds_the_same_vector_everywhere():
    x = torch.randn(2, 16, 5, 4, dtype=torch.float64)
    added = randomised()(x) - x
    assert_close(added, added[:, :, :1, :1].expand_as(added))
    assert added.std() > 0.1


@pytest.mark.parametrize("pool", ["attention", "average"])
def test_context_ignores_the_order_of_positions(pool):
    block, x = randomised(pool=pool), torch.randn(2, 16, 5, 4, dtype=torch.float64)
    order = torch.randperm(20)
    shuffled = x.flatten(2)[:, :, order].view_as(x)
    assert_close(block(shuffled), block(x).flatten(2)[:, :, order].view_as(x))


def test_attention_is_a_weighted_mean():
    """On a constant map every pooling gives the constant: the weights sum to one."""
    x = torch.randn(2, 16, 1, 1, dtype=torch.float64).expand(2, 16, 6, 5)
    attention, average = randomised(), randomised(pool="average")
    average.add.load_state_dict(attention.add.state_dict())
    assert_close(attention(x), average(x))
    y = torch.randn(2, 16, 6, 5, dtype=torch.float64)
    assert (attention(y) - average(y)).abs().max() > 1e-3


def test_both_ways_read_the_context_of_the_input():
    """Multiplication comes first, but the added term does not see its result."""
    both, x = randomised(fuse=("add", "mul")), torch.randn(2, 16, 5, 4, dtype=torch.float64)
    alone = {way: randomised(fuse=(way,)) for way in ("add", "mul")}
    for way, block in alone.items():
        block.load_state_dict(
            {k: v for k, v in both.state_dict().items() if way in k or "att" in k}
        )
    assert_close(both(x), alone["mul"](x) + alone["add"](x) - x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"channels": 16},
            r"GlobalContext: channels // reduction must be at least 2 .* 16 // 16 = 1",
        ),
        ({"channels": 8, "reduction": 16}, r"got 8 // 16 = 0; lower reduction"),
        ({"reduction": 4.0}, r"reduction must be an integer >= 1, got 4\.0"),
        ({"pool": "att"}, r"pool must be 'attention' or 'average', got 'att'"),
        ({"fuse": ()}, r"fuse must name 'add', 'mul' or both, got \(\)"),
        (
            {"fuse": ("channel_add",)},
            r"fuse must name 'add', 'mul' or both, got \('channel_add',\)",
        ),
        ({"fuse": ("add", "add")}, r"fuse must name 'add', 'mul' or both, got \('add', 'add'\)"),
        ({"fuse": None}, r"fuse must name 'add', 'mul' or both, got None"),
    ],
)
def test_rejects_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        GlobalContext(**{"channels": 64, **arguments})


@pytest.mark.parametrize("fuse", ["mul", ["mul"]])
def test_fuse_from_a_file_or_a_command_line(fuse):
    assert GlobalContext(64, fuse=fuse).fuse == ("mul",)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(1, 8, 3, 3), r"GlobalContext: expected \(B, 64, H, W\), got \(1, 8, 3, 3\)"),
        (torch.zeros(64, 3, 3), r"expected \(B, 64, H, W\), got \(64, 3, 3\)"),
        (torch.zeros(1, 64, 3, 3).long(), r"expected a floating-point map, got torch\.int64"),
    ],
)
def test_rejects_inputs(x, message):
    with pytest.raises(ValueError, match=message):
        GlobalContext(64)(x)
