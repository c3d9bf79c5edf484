"""A grafted model goes on working with everything that works on a model."""

import copy
import io
import pickle
import warnings

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from tests.surgery import models
from visgraft.surgery import graft

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def trained(done):
    """Gives the new tensors values that count."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in done.parameters():
            parameter.add_(0.2 * torch.rand(parameter.shape, generator=generator))
    return done


@pytest.fixture(scope="module")
def source():
    """A network with a leaf, a block and a container grafted, trained, and what it returns."""
    model = models.alive(timm.create_model("resnet18"))
    plain = copy.deepcopy(model.state_dict())
    trained(graft(model, "coord_attention", "stage4/block_end", example=X))
    trained(graft(model, "coord_attention", "layer3.1", how="parallel", example=X))
    trained(graft(model, "global_context", ["layer2", "conv1"], example=X))
    with torch.no_grad():
        return model, plain, model(X)


@pytest.fixture
def grafted(source):
    model, _, y = source
    return copy.deepcopy(model), y


def test_state_dicts_fit_both_ways(source, grafted):
    model, plain = grafted[0], source[1]
    model.load_state_dict({name: torch.zeros_like(t) for name, t in plain.items()}, strict=False)
    result = model.load_state_dict(plain, strict=False)
    assert result.unexpected_keys == []
    assert result.missing_keys
    assert all(".graft." in name for name in result.missing_keys)
    assert [n for n in model.state_dict() if ".graft." not in n] == list(plain)
    assert all(torch.equal(model.state_dict()[name], t) for name, t in plain.items())


def test_a_container_keeps_its_children(grafted):
    model, _ = grafted
    assert list(dict(model.layer2.named_children())) == ["0", "1"]
    assert "layer2.1.graft.block.attend.weight" in model.state_dict()


def test_deepcopy_is_independent(grafted):
    model, y = grafted
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model.layer4[0].bn2.graft.scale.zero_()
        assert torch.equal(twin(X), y)
        assert not torch.equal(model(X), y)


def test_pickle_and_torch_save(grafted):
    model, y = grafted
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for twin in (pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)):
        assert torch.equal(twin(X), y)
        with torch.no_grad():
            twin.layer4[0].bn2.graft.scale.zero_()
        assert not torch.equal(twin(X), y)


def test_compiles_without_a_graph_break():
    net = nn.Sequential(models.conv(3, 32), nn.ReLU(), models.conv(32, 32)).eval()
    trained(graft(net, "coord_attention", "0", example=X))
    trained(graft(net, "cot", "2", example=X))
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(X), net(X), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_exports_with_a_free_batch_and_size(strict):
    net = nn.Sequential(models.conv(3, 32), nn.ReLU(), models.conv(32, 32)).eval()
    trained(graft(net, "coord_attention", "0", example=X))
    trained(graft(net, "cot", "2", example=X))
    free = {0: torch.export.Dim("batch"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    program = torch.export.export(net, (X,), dynamic_shapes=(free,), strict=strict)
    other = torch.randn(3, 3, 20, 36)
    torch.testing.assert_close(program.module()(other), net(other), rtol=1e-4, atol=1e-4)


def test_fx_keeps_the_grafts(grafted):
    model, y = grafted
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(X), y)
    assert "layer3.1.graft.scale" in traced.state_dict()


def test_jit_trace(grafted):
    model, y = grafted
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, X)
    torch.testing.assert_close(traced(X), y, rtol=1e-4, atol=1e-4)


def test_torchvision_feature_extractor():
    model = models.alive(torchvision.models.resnet18())
    trained(graft(model, "coord_attention", "stage_end"))
    features = []
    model.layer3.register_forward_hook(lambda _, __, output: features.append(output))
    model(X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        extractor = create_feature_extractor(model, ["layer3"])
    assert torch.equal(extractor(X)["layer3"], features[0])
    assert "layer3.1.graft.scale" in extractor.state_dict()


def test_timm_features_only():
    torch.manual_seed(0)
    whole = models.alive(timm.create_model("resnet18"))
    features = timm.create_model("resnet18", features_only=True).eval()
    features.load_state_dict(whole.state_dict(), strict=False)
    for model in (whole, features):
        for at, how in (("layer3.1", "parallel"), ("layer4", "after"), ("stage2/block_end", None)):
            with torch.random.fork_rng():
                torch.manual_seed(5)
                trained(graft(model, "coord_attention", at, how=how, example=X))
    names = {n for n in features.state_dict() if ".graft" in n}
    assert names == {n for n in whole.state_dict() if ".graft" in n}
    torch.testing.assert_close(features(X)[-1], whole.forward_features(X), rtol=0, atol=0)


def test_activation_checkpointing_runs_the_grafts(grafted):
    model, y = grafted
    model.set_grad_checkpointing()
    assert torch.equal(model(X.requires_grad_(False)), y)
    model(X).sum().backward()
    assert model.layer2[1].graft.block.add.expand.weight.grad.abs().sum() > 0


def test_a_layer_whose_forward_is_replaced_later_keeps_its_graft():
    net = nn.Sequential(models.conv(3, 32), nn.ReLU())
    done = trained(graft(net, "coord_attention", "0", how="after", example=X))
    net[0].forward = lambda x: torch.zeros(1, 32, *x.shape[2:]) + 1.0
    seen = []
    net[0].graft.register_forward_hook(lambda _, args, __: seen.append(args[0].mean().item()))
    net(X)
    assert seen == [1.0]
    assert done.rows[0].key == "0.graft"


def test_hooks_of_the_user_survive_and_see_the_graft():
    net = nn.Sequential(models.conv(3, 32), nn.ReLU()).eval()
    seen = []
    before = net[0].register_forward_hook(lambda _, __, y: seen.append(("before", y)))
    net[0].register_forward_pre_hook(lambda _, args: seen.append(("pre", args[0])))
    done = trained(graft(net, "coord_attention", "0", how="after", example=X))
    net[0].register_forward_hook(lambda _, __, y: seen.append(("later", y)))
    assert seen == []
    y = net[0](X)
    assert [name for name, _ in seen] == ["pre", "before", "later"]
    assert seen[1][1] is y
    assert seen[2][1] is y
    before.remove()
    done.undo()
    seen.clear()
    net(X)
    assert [name for name, _ in seen] == ["pre", "later"]


def test_ddp_finds_no_unused_parameter():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        net = nn.Sequential(models.conv(3, 32), nn.ReLU(), models.conv(32, 32))
        graft(net, "cot", "2", example=X)
        wrapped = nn.parallel.DistributedDataParallel(net)
        for _ in range(2):  # the second step fails if a parameter had no gradient in the first
            wrapped(X).square().mean().backward()
        assert all(p.grad is not None for p in net.parameters())
        with pytest.raises(
            ValueError, match=r"wrapped in DistributedDataParallel; graft its \.mod"
        ):
            graft(wrapped, "cot", "module.0")
    finally:
        torch.distributed.destroy_process_group()
