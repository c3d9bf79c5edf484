"""What a graft changed is taken back to the last bit, and an error changes nothing."""

import copy

import pytest
import torch
from torch import nn

from tests.surgery import models
from visgraft.surgery import graft

X = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_with_kwargs")


def picture(model):
    """Everything that surgery could change: modules, tensors, hooks and modes, by identity."""
    return {
        "text": repr(model),
        "modules": [(n, id(m)) for n, m in model.named_modules(remove_duplicate=False)],
        "tensors": [(n, id(t)) for n, t in model.state_dict(keep_vars=True).items()],
        "values": copy.deepcopy(list(model.state_dict().values())),
        "hooks": [[dict(getattr(m, name)) for name in HOOKS] for m in model.modules()],
        "modes": [m.training for m in model.modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
    }


def assert_same(one, other):
    values = zip(one.pop("values"), other.pop("values"), strict=True)
    assert all(torch.equal(a, b) for a, b in values)
    assert one == other


def net():
    model = models.SharedLayer()
    model.stem.register_forward_hook(lambda *_: None)
    model.first.register_forward_pre_hook(lambda *_: None)
    model.pool.eval()
    return model


@pytest.mark.parametrize(
    ("block", "at", "how", "start"),
    [
        ("coord_attention", "conv3x3", "after", "identity"),
        ("cot", "first", "parallel", "identity"),
        ("cot", "first", "replace", "paper"),
        ("coord_attention", ["stem", "pool"], "after", "paper"),
    ],
)
def test_undo_restores_everything(block, at, how, start):
    model = net()
    before = picture(model)
    done = graft(model, block, at, how=how, start=start, example=X)
    with torch.no_grad():
        for parameter in done.parameters():
            parameter.add_(1)
    done.undo()
    assert_same(picture(model), before)


def test_undo_of_independent_grafts_in_any_order():
    model = net()
    before = picture(model)
    first = graft(model, "coord_attention", "stem", example=X)
    second = graft(model, "cot", "first", example=X)
    first.undo()
    assert "first.graft.scale" in model.state_dict()
    second.undo()
    assert_same(picture(model), before)


def test_undo_twice():
    done = graft(net(), "coord_attention", "stem", example=X)
    done.undo()
    with pytest.raises(ValueError, match=r"^Graft.undo: this graft has been undone$"):
        done.undo()
    with pytest.raises(ValueError, match=r"^Graft.max_difference: this graft has been undone$"):
        _ = done.max_difference
    assert "undone" in repr(done)
    assert "max difference" not in str(done)


def test_undo_below_a_later_graft():
    model = net()
    first = graft(model, "cot", "first", how="replace", start="paper", example=X)
    second = graft(model, "coord_attention", "first", example=X)
    with pytest.raises(ValueError, match=r"^Graft.undo: a layer it put in has been grafted since"):
        first.undo()
    second.undo()
    first.undo()
    assert type(model.first) is nn.Conv2d


def test_undo_after_somebody_else_replaced_the_layer():
    model = net()
    done = graft(model, "cot", "first", how="replace", start="paper", example=X)
    model.first = nn.Identity()
    with pytest.raises(ValueError, match=r"^Graft.undo: a layer it put in has been replaced since"):
        done.undo()


def test_training_between_graft_and_undo_stays():
    model = net()
    done = graft(model, "coord_attention", "stem", example=X)
    with torch.no_grad():
        model.stem.weight.fill_(0.5)
    done.undo()
    assert torch.equal(model.stem.weight, torch.full_like(model.stem.weight, 0.5))


def explodes_at_the_second(calls):
    def make(site):
        calls.append(site.path)
        if len(calls) == 2:
            raise RuntimeError("boom")
        return nn.Identity()

    return make


def wrong_shape(site):
    return nn.Conv2d(site.out_channels, site.out_channels, 2)


@pytest.mark.parametrize(
    ("block", "kwargs", "error", "message"),
    [
        (explodes_at_the_second([]), {}, RuntimeError, "boom"),
        (wrong_shape, {}, ValueError, r"from a map \(1, 32, 32, 32\) the block makes"),
        ("cot", {"kernel_size": 2}, ValueError, "kernel_size"),
    ],
)
def test_an_error_changes_nothing(block, kwargs, error, message):
    model = net()
    before = picture(model)
    with pytest.raises(error, match=message):
        graft(model, block, ["stem", "first"], how="after", example=X, **kwargs)
    assert_same(picture(model), before)


def test_an_interruption_in_the_middle_changes_nothing(monkeypatch):
    from visgraft.surgery import _operations

    model = net()
    before = picture(model)
    apply = _operations.Insertion.apply

    def interrupted(self):
        if self.layer is model.first:
            raise KeyboardInterrupt
        apply(self)

    monkeypatch.setattr(_operations.Insertion, "apply", interrupted)
    with pytest.raises(KeyboardInterrupt):
        graft(model, "coord_attention", ["stem", "first"], example=X)
    assert_same(picture(model), before)


def test_a_module_that_runs_its_children_is_found_out():
    model = models.ReadsItsChildren()
    before = picture(model)
    with pytest.raises(ValueError, match=r"graft: inner is called 1 times, .* called 2 times"):
        graft(model, "coord_attention", "inner", example=X)
    assert_same(picture(model), before)
    graft(model, "coord_attention", "inner.layer0", how="after", example=X)
