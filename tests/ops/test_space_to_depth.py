import pytest
import torch
from torch.testing import assert_close

from tests.golden_table import golden_cases
from visgraft.ops import space_to_depth


@pytest.mark.parametrize(
    "case", golden_cases("spd-official", "spd-seed"), ids=lambda case: case.name
)
def test_golden(case):
    x = case.tensors["input"].requires_grad_()
    y = space_to_depth(x)
    assert_close(y, case.tensors["output_eval"], rtol=0, atol=0)
    (y * case.tensors["probe"]).sum().backward()
    assert_close(x.grad, case.tensors["grad_input"], rtol=0, atol=0)


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (4, 6), (5, 8), (7, 3), (12, 1)])
def test_each_value_goes_to_its_documented_place(size, scale):
    x = torch.arange(1, 1 + 2 * 3 * size[0] * size[1]).reshape(2, 3, *size)
    y = space_to_depth(x, scale)
    height, width = (-(-n // scale) for n in size)
    assert y.shape == (2, 3 * scale**2, height, width)
    left = y.clone()
    for row in range(size[0]):
        for column in range(size[1]):
            (h, i), (w, j) = divmod(row, scale), divmod(column, scale)
            first = (scale * j + i) * 3
            assert torch.equal(y[:, first : first + 3, h, w], x[:, :, row, column])
            left[:, first : first + 3, h, w] = 0
    assert not left.any()  # the rest is zeros


def test_is_pixel_unshuffle_in_another_order():
    x = torch.randn(2, 5, 6, 9)
    ours = space_to_depth(x, 3).unflatten(1, (3, 3, 5))  # column, row, channel
    theirs = torch.pixel_unshuffle(x, 3).unflatten(1, (5, 3, 3))  # channel, row, column
    assert torch.equal(ours, theirs.permute(0, 3, 2, 1, 4, 5))


@pytest.mark.parametrize("batch", [(), (0,), (2, 3)])
def test_takes_any_leading_dimensions(batch):
    x = torch.randn(*batch, 4, 5, 6)
    y = space_to_depth(x)
    assert y.shape == (*batch, 16, 3, 3)
    if y.numel():
        assert torch.equal(y.reshape(-1, 16, 3, 3)[-1], space_to_depth(x.reshape(-1, 4, 5, 6)[-1]))


def test_traced_form_is_the_same_at_every_size():
    class Step(torch.nn.Module):
        def forward(self, x):
            return space_to_depth(x, 3)

    dynamic = ({2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(Step(), (torch.randn(2, 4, 7, 9),), dynamic_shapes=dynamic)
    for size in [(7, 9), (8, 5), (6, 6), (4, 31)]:
        x = torch.randn(2, 4, *size)
        assert torch.equal(program.module()(x), space_to_depth(x, 3))


def test_gradient():
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: space_to_depth(x, 3), (x,))


@pytest.mark.parametrize("scale", [0, -1, True, 2.0, "2"])
def test_rejects_a_scale_that_is_no_positive_integer(scale):
    with pytest.raises(ValueError, match=rf"scale must be an integer >= 1, got {scale!r}"):
        space_to_depth(torch.zeros(1, 1, 2, 2), scale)


def test_rejects_a_matrix():
    with pytest.raises(ValueError, match=r"expected \(\.\.\., C, H, W\), got \(4, 4\)"):
        space_to_depth(torch.zeros(4, 4))
