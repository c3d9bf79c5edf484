"""Recorded parts of networks: every value of the authors' code, through `load_published`."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.golden_table import GoldenCase
from visgraft.blocks import load_published

__all__ = ["check_part", "golden_part"]


def golden_part(name: str) -> GoldenCase:
    """Returns a recorded case of tests/golden/parts, described in tests/golden/README.md."""
    return GoldenCase(f"parts/{name}")


def check_part(case: GoldenCase, part: nn.Module) -> None:
    """Compares outputs, gradients and running statistics, by the tolerances beside them.

    The authors' names of parameters and statistics are translated as those of the weights are: by
    loading what was recorded under them. The relative tolerance of a parameter's gradient is one
    of its largest value: behind batch statistics over three values, the recorded float32 numbers
    are further from the exact ones than they may be element by element.
    """
    state, stored = case.named("state"), case.tensors
    assert sum(p.numel() for p in part.parameters()) == case.record["params"]
    assert load_published(part, state).tensors == len(case.record["state_keys"])

    with torch.no_grad():
        y = part.eval()(stored["input"])
    assert_close(y, stored["output_eval"], **case.tolerance("eval"))

    x = stored["input"].clone().requires_grad_()
    y = part.train()(x)
    assert_close(y, stored["output_train"], **case.tolerance("train"))
    (y * stored["probe"]).sum().backward()
    assert_close(x.grad, stored["grad_input"], **case.tolerance("grad"))

    gradients = _named_here(part, state, case.named("gradparam"))
    vanishing, tolerance = _vanishing_gradients(case, part), case.tolerance("grad")
    for key, parameter in part.named_parameters():
        recorded, difference = gradients[key], (parameter.grad - gradients[key]).abs().max()
        if key in vanishing:
            assert max(parameter.grad.abs().max(), recorded.abs().max()) < vanishing[key], key
        else:
            assert difference <= tolerance["atol"] + tolerance["rtol"] * recorded.abs().max(), key

    statistics = _named_here(part, state, case.named("after_train"))
    for key, buffer in part.state_dict().items():
        if key not in dict(part.named_parameters()):
            assert_close(buffer, statistics[key], **case.tolerance("train"), msg=_about(key))


def _named_here(
    part: nn.Module, state: dict[str, Tensor], values: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Returns recorded values by our names; of the others, what the weights hold."""
    assert set(values) <= set(state)
    clone = copy.deepcopy(part)
    load_published(clone, state | values)
    return clone.state_dict()


def _vanishing_gradients(case: GoldenCase, part: nn.Module) -> dict[str, float]:
    """Returns the parameters that change nothing in training, with a bound on rounding noise.

    A bias in front of batch statistics cancels; what is recorded for it is noise.
    """
    exact = copy.deepcopy(part)
    load_published(exact, case.named("state"))
    exact.zero_grad()
    y = exact.double().train()(case.tensors["input"].double())
    (y * case.tensors["probe"].double()).sum().backward()
    sizes = {key: p.grad.abs().max().item() for key, p in exact.named_parameters()}
    largest = max(sizes.values())
    return {key: 1e-4 * largest for key, size in sizes.items() if size < 1e-12 * largest}


def _about(key: str) -> Callable[[str], str]:
    return lambda text: f"{key}: {text}"
