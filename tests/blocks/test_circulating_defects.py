"""Defects of copies in circulation that no test of a single block's file would notice."""

import pytest
import torch
from torch.testing import assert_close

from tests.blocks.test_contract import CASES
from visgraft.blocks import create_block


def spread_of_dynamic_context(size):
    """Returns the standard deviation of the values summed under the kernels of each position."""
    torch.manual_seed(3)
    block, seen = create_block("cot", 32).eval(), []
    block.get_submodule("norm").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    block(torch.randn(2, 32, size, size))
    return seen[0].std().item()


def test_dynamic_context_does_not_fade_as_the_map_grows():
    """A softmax over the whole map would divide it by the number of positions."""
    small, large = (spread_of_dynamic_context(size) for size in (6, 48))
    assert 0.8 < large / small < 1.25


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tensors_are_made_where_the_map_is(case):
    """Not on the default device, nor on the first of several."""
    block, x = case.build().eval(), case.input()
    expected = block(x)
    with torch.device("meta"):
        assert_close(block(x), expected, rtol=0.0, atol=0.0)
        block.train()(x).sum().backward()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_is_printed(case, capfd):
    block, x = case.build(), case.input()
    block.train()(x).sum().backward()
    block.eval()(x)
    assert capfd.readouterr() == ("", "")


def test_one_compiled_graph_serves_all_sizes():
    torch.compiler.reset()
    block = create_block("cot", 16).eval()
    compiled = torch.compile(block, fullgraph=True, backend="eager", dynamic=True)
    compiled(torch.randn(2, 16, 7, 5))
    with torch.compiler.set_stance("fail_on_recompile"):
        for size in ((9, 12), (17, 4)):
            x = torch.randn(3, 16, *size)
            assert_close(compiled(x), block(x))
    torch.compiler.reset()
