"""Optimizers that exist before a graft: what they hold, and how they get the new tensors."""

import pytest
import torch
from torch import nn

from tests.surgery import models
from visgraft.surgery import graft

SHAPE = (1, 3, 16, 16)
X = torch.randn(2, *SHAPE[1:], generator=torch.Generator().manual_seed(3))


def net():
    return nn.Sequential(models.conv(3, 32), nn.ReLU(), models.conv(32, 32))


def optimizer_of(model, **options):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, **options)


def step(model, optimizer):
    optimizer.zero_grad()
    model(X).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize(("block", "how"), [("coord_attention", "after"), ("cot", "parallel")])
def test_new_parameters_become_a_group(block, how):
    model = net()
    optimizer = optimizer_of(model)
    done = graft(model, block, "2", how=how, example=SHAPE)
    scale = model[2].graft.scale
    step(model, optimizer)
    assert scale.count_nonzero() == 0
    done.add_to(optimizer, lr=0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.5]
    assert optimizer.param_groups[1]["momentum"] == 0.9
    assert set(optimizer.param_groups[1]["params"]) == set(model[2].graft.parameters())
    step(model, optimizer)
    assert scale.count_nonzero() > 0


def test_a_block_that_takes_over_the_weights_leaves_them_in_the_optimizer():
    model = net()
    weight = model[2].weight
    optimizer = optimizer_of(model)
    step(model, optimizer)
    done = graft(model, "deform_conv", "2", example=SHAPE)
    assert model[2].weight is weight
    assert set(done.parameters()) == set(model[2].offset.parameters())
    assert "left the model" not in str(done)
    done.add_to(optimizer)
    before = weight.clone()
    step(model, optimizer)
    assert not torch.equal(model[2].weight, before)
    assert model[2].offset.weight.count_nonzero() > 0
    done.undo()
    assert type(model[2]) is nn.Conv2d
    assert model[2].weight is weight


def test_parameters_that_left_the_model_are_named():
    model = net()
    optimizer = optimizer_of(model)
    done = graft(model, "cot", "2", start="paper", example=SHAPE)
    assert str(done).endswith("\n2 parameters left the model: make its optimizers anew")
    with pytest.raises(
        ValueError,
        match=r"^Graft\.add_to: the optimizer has parameters of layers that the graft took out "
        r"\(2\.weight, 2\.bias\); make it anew from the model's parameters$",
    ):
        done.add_to(optimizer)
    assert len(optimizer.param_groups) == 1
    done.undo()
    assert "left the model" not in str(done)


def test_weights_that_are_laid_out_anew_left_the_model():
    model = nn.Sequential(models.conv(3, 32), models.conv(32, 32, stride=2))
    optimizer = optimizer_of(model)
    done = graft(model, "spd_conv", "1", example=SHAPE)
    assert done.rows[0].notes == ("holds the layer's weights, laid out anew",)
    assert set(done.parameters()) == set(model[1].parameters())
    with pytest.raises(ValueError, match=r"the graft took out \(1\.weight, 1\.bias\)"):
        done.add_to(optimizer)


def test_an_optimizer_of_other_layers_may_take_the_block_of_a_replaced_one():
    model = net()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    done = graft(model, "cot", "2", start="paper", example=SHAPE)
    done.add_to(optimizer)
    assert set(optimizer.param_groups[1]["params"]) == set(model[2].parameters())


def test_the_new_parameters_twice():
    model = net()
    done = graft(model, "coord_attention", "0", how="after", example=SHAPE)
    optimizer = optimizer_of(model)
    count = len(done.parameters())
    with pytest.raises(
        ValueError, match=rf"^Graft\.add_to: the optimizer has {count} of the {count} new param"
    ):
        done.add_to(optimizer)
    assert len(optimizer.param_groups) == 1
    done.undo()
    with pytest.raises(ValueError, match=r"^Graft\.add_to: this graft has been undone$"):
        done.add_to(optimizer)


def test_a_block_around_the_layer_makes_its_own_parameters_new_alone():
    model = net()
    around = nn.Sequential(model[2], nn.Conv2d(32, 32, 1))
    done = graft(model, lambda _: around, "2", how="replace", start="paper", example=SHAPE)
    assert set(done.parameters()) == set(around[1].parameters())
    assert "left the model" not in str(done)
