import pytest
import torch
from torch.autograd import forward_ad
from torch.testing import assert_close

from visgraft.ops import local_aggregation
from visgraft.ops._dispatch import Implementation, Op, being_traced, missing
from visgraft.ops.local_aggregation import LOCAL_AGGREGATION


def double(x):
    return 2 * x


def only_small(x):
    return None if x.numel() < 3 else f"needs fewer than 3 elements, got {x.numel()}"


OP = Op(
    "double",
    double,
    missing("turbo"),
    Implementation("small", lambda x: x + x, only_small),
)


def test_the_first_that_does_not_refuse_runs():
    calls = []
    op = Op(
        "double",
        lambda x: calls.append("reference") or 2 * x,
        Implementation("small", lambda x: calls.append("small") or x + x, only_small),
    )
    op(torch.ones(2))
    op(torch.ones(4))
    op(torch.ones(2), backend="reference")
    assert calls == ["small", "reference", "reference"]


def test_explain_gives_the_reasons_in_order():
    assert OP.explain(torch.ones(4)) == {
        "turbo": "turbo is not installed",
        "small": "needs fewer than 3 elements, got 4",
        "reference": "ok",
    }


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("turbo", r"double: backend 'turbo' cannot run here: turbo is not installed"),
        ("small", r"double: backend 'small' cannot run here: needs fewer than 3 elements, got 4"),
        ("smal", r"double has no backend 'smal'; it has turbo, small, reference"),
    ],
)
def test_a_named_backend_runs_or_says_why_not(backend, message):
    with pytest.raises(ValueError, match=message):
        OP(torch.ones(4), backend=backend)


def test_a_stand_in_cannot_be_run():
    with pytest.raises(ImportError, match=r"^turbo is not installed$"):
        missing("turbo").run(torch.ones(1))


def test_tracing_is_noticed():
    seen = []

    class Module(torch.nn.Module):
        def forward(self, x):
            seen.append(being_traced())
            return x + 1

    Module()(torch.ones(2))
    torch.export.export(Module(), (torch.ones(2),), strict=False)
    assert seen == [False, True]


def aggregate(x, weight):
    return local_aggregation(x, weight, 3)


def numbers(*shape):
    return torch.linspace(-1, 2, torch.Size(shape).numel(), dtype=torch.float32).view(shape)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is:FutureWarning")
def test_tangents_are_not_lost():
    """The operation is linear in each of its arguments."""
    tensors = x, weight = numbers(1, 4, 5, 6), numbers(1, 1, 2, 9, 5, 6)
    along = x.flip(3), weight.flip(3)
    expected = aggregate(along[0], weight) + aggregate(x, along[1])
    assert_close(torch.func.jvp(aggregate, tensors, along)[1], expected)
    with forward_ad.dual_level():
        dual = [forward_ad.make_dual(*pair) for pair in zip(tensors, along, strict=True)]
        assert_close(forward_ad.unpack_dual(aggregate(*dual)).tangent, expected)
        answers = LOCAL_AGGREGATION.explain(*tensors, 3, 1, 1, 1)
        assert answers.pop("reference") == "ok"
        assert all("forward-mode differentiation" in reason for reason in answers.values())
        with pytest.raises(ValueError, match=r"'shifted' cannot run here: torch.func or forward"):
            local_aggregation(*tensors, 3, backend="shifted")


def test_functions_of_torch_func_see_through():
    tensors = x, weight = numbers(2, 4, 5, 6), numbers(2, 1, 2, 9, 5, 6)
    each = torch.vmap(aggregate)(x[:, None], weight[:, None])
    assert_close(each.flatten(0, 1), aggregate(*tensors))
    found = torch.func.grad(lambda *args: aggregate(*args).square().sum(), (0, 1))(*tensors)
    leaves = [t.clone().requires_grad_() for t in tensors]
    assert_close(found, torch.autograd.grad(aggregate(*leaves).square().sum(), leaves))
