"""What the holders compute between the layer and the block."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from visgraft.surgery.holders import After, Parallel

X, Y = torch.randn(2, 2, 8, 5, 6, generator=torch.Generator().manual_seed(0))


def block():
    torch.manual_seed(1)
    return nn.Conv2d(8, 8, 1)


def with_scale(holder, value):
    nn.init.constant_(holder.scale, value)
    return holder


@pytest.mark.parametrize("scale", [0.0, 0.25, 0.5, 1.0, -2.0])
def test_scaled(scale):
    made = block()
    assert_close(with_scale(After(made, 8), scale)(Y), Y + scale * (made(Y) - Y))
    assert_close(with_scale(Parallel(made, 8), scale)(X, Y), Y + scale * made(X))


def test_each_channel_has_its_own_factor():
    holder = After(block(), 8)
    with torch.no_grad():
        holder.scale[3] = 1
    changed = (holder(Y) != Y).any(dim=(0, 2, 3))
    assert changed.tolist() == [i == 3 for i in range(8)]


def test_unscaled():
    made = block()
    assert torch.equal(After(made, None)(Y), made(Y))
    assert torch.equal(Parallel(made, None)(X, Y), Y + made(X))
    assert list(After(made, None).state_dict()) == ["block.weight", "block.bias"]


@pytest.mark.parametrize("scale", [8, None])
def test_the_dtype_of_the_layer_stays(scale):
    class ToFloat(nn.Module):
        def forward(self, x):
            return x.float()

    y = Y.bfloat16()
    assert After(ToFloat(), scale)(y).dtype is torch.bfloat16
    assert Parallel(ToFloat(), scale)(y, y).dtype is torch.bfloat16


def test_infinite_products_apart_a_zero_factor_hides_the_block():
    class Big(nn.Module):
        def forward(self, x):
            return x * 1e30

    assert torch.equal(After(Big(), 8)(Y), Y)
    assert torch.equal(Parallel(Big(), 8)(X, Y), Y)


def test_switched_off():
    holder = After(block(), 8)
    assert holder.on_output(nn.Identity(), (X,), Y) is not None
    holder.enabled = False
    assert holder.on_output(nn.Identity(), (X,), Y) is None
    assert "enabled=False" in repr(holder)
    assert "enabled" not in repr(After(block(), 8))
