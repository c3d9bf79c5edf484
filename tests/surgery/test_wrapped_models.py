"""Hooks, ties, wrappers and conversions: each works, or is refused before anything changes."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from tests.surgery import models
from tests.surgery.test_undo import assert_same, picture
from visgraft.surgery import find_sites, graft

SHAPE = (1, 3, 16, 16)
X = torch.randn(2, *SHAPE[1:], generator=torch.Generator().manual_seed(3))


def net():
    torch.manual_seed(0)
    return nn.Sequential(models.conv(3, 32), nn.ReLU(), models.conv(32, 32), nn.ReLU())


def refuses(model, message, block="deform_conv", at="2", **options):
    before = picture(model)
    with pytest.raises(ValueError, match=message):
        graft(model, block, at, example=SHAPE, **options)
    assert_same(picture(model), before)


@pytest.fixture
def mesh():
    """A process group of one, for wrappers that need one."""
    from torch.distributed.device_mesh import init_device_mesh

    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_sharded_and_distributed_models(mesh):
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import distribute_module

    sharded = net()
    fully_shard(sharded[2], mesh=mesh)
    with pytest.raises(ValueError, match=r"the layer '2' is sharded by FSDP; graft it first and s"):
        graft(sharded, "coord_attention", "0", example=SHAPE)
    with pytest.raises(ValueError, match=r"the layer '0' holds a DTensor \(quantised or distribut"):
        find_sites(distribute_module(net(), mesh), SHAPE)
    wrapped = nn.parallel.DistributedDataParallel(net())
    with pytest.raises(ValueError, match=r"is wrapped in DistributedDataParallel; graft its \.mod"):
        graft(wrapped, "coord_attention", "module.0", example=SHAPE)


def test_tensors_of_another_kind():
    from torch.testing._internal.two_tensor import TwoTensor

    model = net()
    weight = model[2].weight.detach()
    model[2].weight = nn.Parameter(TwoTensor(weight, weight.clone()))
    with pytest.raises(ValueError, match=r"the layer '2' holds a TwoTensor \(quantised or distri"):
        graft(model, "coord_attention", "0", example=SHAPE)


def test_an_exported_program_has_no_layers():
    program = torch.export.export(net(), (X,)).module()
    with pytest.raises(ValueError, match=r"the model is an exported graph of operations without"):
        graft(program, "coord_attention", "2", example=SHAPE)


def test_models_quantised_by_their_graph():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import get_default_qconfig_mapping
        from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

        prepared = prepare_fx(net().eval(), get_default_qconfig_mapping("x86"), (X,))
        prepared(X)
        quantised = convert_fx(prepared)
    with pytest.raises(
        ValueError, match=r"the layer '0' is quantised; graft the model first and q"
    ):
        graft(quantised, "coord_attention", "0", example=SHAPE)


def test_a_traced_graph_of_layers_takes_a_graft():
    model = torch.fx.symbolic_trace(net()).eval()
    before = model(X)
    done = graft(model, "cot", "2", example=SHAPE)
    assert torch.equal(model(X), before)
    with torch.no_grad():
        done.parameters()[0].add_(1)
    assert not torch.equal(model(X), before)


def test_tied_weights_stay_tied():
    model = nn.Sequential(models.conv(3, 32), *(models.conv(32, 32) for _ in range(3))).eval()
    model[1].weight = model[2].weight
    before = model(X)
    done = graft(model, "deform_conv", ["1", "3"], example=SHAPE)
    assert model[1].weight is model[2].weight
    torch.testing.assert_close(model(X), before, rtol=1e-5, atol=1e-5)
    assert done.totals.kept == done.totals.tensors
    done.undo()
    assert model[1].weight is model[2].weight
    assert torch.equal(model(X), before)


def test_tied_weights_that_a_block_would_copy():
    model = nn.Sequential(models.conv(3, 32), models.conv(32, 32, 2), models.conv(32, 32))
    model[1].weight = model[2].weight
    refuses(
        model,
        r"1 \(shares a tensor with 2, which the block would not; use how='parallel'\)",
        "spd_conv",
        "1",
    )
    assert graft(model, "spd_conv", "1", how="parallel", example=SHAPE).max_difference == 0.0


def test_a_parametrized_layer():
    model = net().eval()
    parametrizations.weight_norm(model[2])
    refuses(model, r"2 \(its weight is parametrized; remove that first, or use how='parallel'\)")
    refuses(model, r"2 \(its weight is parametrized", "cot", start="paper")
    before = model(X)
    graft(model, "cot", "2", example=SHAPE)
    assert torch.equal(model(X), before)


def test_hooks_on_the_state_dict():
    model = net()
    model[2].register_state_dict_post_hook(lambda *_: None)
    refuses(model, r"2 \(has hooks on its state dict, which would go; use how='parallel'\)")
    assert graft(model, "cot", "2", example=SHAPE).max_difference == 0.0


@pytest.mark.parametrize("block", ["deform_conv", "cot", "coord_attention"])
def test_hooks_on_gradients_stay(block):
    model, seen = net(), []
    model[2].register_full_backward_pre_hook(lambda *_: seen.append("before"))
    model[2].register_full_backward_hook(lambda _, given, __: seen.append(given[0].shape))
    done = graft(model, block, "2", example=SHAPE)
    for _ in range(2):
        model(X).sum().backward()
    assert seen == ["before", (2, 32, 16, 16)] * 2
    done.undo()
    model(X).sum().backward()
    assert len(seen) == 6


class ByName(nn.Module):
    """Calls a layer with its input by name."""

    def __init__(self):
        super().__init__()
        self.first, self.second = models.conv(3, 32), models.conv(32, 32)

    def forward(self, x):
        return self.second(input=self.first(x))


def test_a_layer_that_is_called_with_its_input_by_name():
    model = ByName().eval()
    assert [site.path for site in find_sites(model, SHAPE)] == ["first", "second"]
    refuses(
        model, r"second \(is called with its input by name, which a block is not\)", at="second"
    )
    before = model(X)
    done = graft(model, "coord_attention", "second", example=SHAPE)
    assert torch.equal(model(X), before)
    with torch.no_grad():
        done.parameters()[0].add_(1)
    assert not torch.equal(model(X), before)


@pytest.mark.parametrize("start", ["identity", "paper"])
def test_a_frozen_layer_whose_place_is_taken(start):
    model = net().requires_grad_(False)
    done = graft(model, "deform_conv", "2", start=start, example=SHAPE)
    assert done.rows[0].notes[-1] == "the layer is frozen, the new tensors are not"
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    new = {"2.offset.weight", "2.offset.bias"}
    assert trainable == (new if start == "identity" else new | {"2.weight"})
    assert {id(p) for p in done.parameters()} == {
        id(p) for n, p in model.named_parameters() if n in trainable
    }


def test_a_copy_of_a_grafted_model_ties_nothing_to_the_first():
    model = net().eval()
    graft(model, "deform_conv", "2", example=SHAPE)
    twin = copy.deepcopy(model)
    assert twin[2].weight is not model[2].weight
    assert torch.equal(twin(X), model(X))
