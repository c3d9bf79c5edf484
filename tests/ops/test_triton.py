"""GPU kernels: values in Triton's interpreter, on a GPU where there is one; and without Triton."""

import importlib.util

import pytest
import torch

from tests.ops.gpu_kernels import run_checks


@pytest.mark.slow
def test_values_in_the_interpreter():
    run_checks(interpreted=True)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_values_on_a_gpu():
    run_checks(interpreted=False)


@pytest.mark.parametrize(
    "op",
    [
        "batch_norm_activation",
        "local_aggregation",
        "relative_attention",
        "selection",
        "strip_gate",
        "window_attention",
    ],
)
def test_works_where_triton_is_not_installed(monkeypatch, op):
    path = importlib.util.find_spec(f"visgraft.ops.{op}").origin
    spec = importlib.util.spec_from_file_location(f"{op}_without_triton", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    spec.loader.exec_module(module)
    (triton,) = (i for i in getattr(module, op.upper()).implementations if i.name == "triton")
    assert triton.refusal() == "triton is not installed"
