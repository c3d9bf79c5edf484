import pytest
import torch

from visgraft.ops._dispatch import Implementation, Op, being_traced, missing


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
