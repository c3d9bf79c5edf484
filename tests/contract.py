"""What every block keeps: its golden values, and the contract, property by property."""

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.golden_table import GoldenCase, build
from visgraft.blocks import Layout, create_block, layouts_of, load_published

__all__ = ["PROPERTIES", "SLOW_PROPERTIES", "Case", "check_golden"]

SIZES = [(1, 1), (1, 9), (3, 2), (7, 5), (16, 16), (33, 65), (65, 1)]
EXACT = {"rtol": 0.0, "atol": 0.0}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
ROUNDED = {torch.bfloat16: 5e-2, torch.float16: 1e-2}  # relative to the largest value


def check_golden(case: GoldenCase) -> None:
    """Published weights load and give every recorded value, within the tolerances beside them."""
    module = build(case)
    report = load_published(module, case.named("state"))
    ours = case.named("state").keys() == module.state_dict().keys()
    assert (report.layout == "visgraft") == ours
    assert report.tensors == len(case.record["state_keys"])
    assert sum(p.numel() for p in module.parameters()) == case.record["params"]
    stored = case.tensors

    with torch.no_grad():
        assert_close(
            module.eval()(stored["input"]), stored["output_eval"], **case.tolerance("eval")
        )

    x = stored["input"].clone().requires_grad_()
    y = module.train()(x)
    assert_close(y, stored["output_train"], **case.tolerance("train"))
    (y * stored["probe"]).sum().backward()
    assert_close(x.grad, stored["grad_input"], **case.tolerance("grad"))

    known = (*layouts_of(type(module)), Layout("visgraft"))
    (layout,) = (each for each in known if each.name == report.layout)
    gradients = {layout.rename(k): v for k, v in case.named("gradparam").items()}
    gradients = gradients if layout.adapt is None else layout.adapt(module, gradients)
    assert gradients.keys() == dict(module.named_parameters()).keys()
    vanishing = _vanishing_gradients(case)
    for key, parameter in module.named_parameters():
        if key in vanishing:
            assert max(parameter.grad.abs().max(), gradients[key].abs().max()) < vanishing[key], key
        else:
            assert_close(parameter.grad, gradients[key], **case.tolerance("grad"), msg=_about(key))
    if case.family == "sk-seed":
        return  # the recorded code runs each branch, and updates its statistics, twice
    statistics = {layout.rename(k): v for k, v in case.named("after_train").items()}
    assert statistics.keys() == dict(module.named_buffers()).keys()
    for key, buffer in module.named_buffers():
        assert_close(buffer, statistics[key], **case.tolerance("train"), msg=_about(key))


def _vanishing_gradients(case: GoldenCase) -> dict[str, float]:
    """Returns the parameters that change nothing in training, with a bound on rounding noise.

    A bias in front of batch statistics or of a softmax over positions cancels. What is recorded
    for it is noise, which the published code itself does not repeat with another thread count.
    """
    module = build(case)
    load_published(module, case.named("state"))
    y = module.double().train()(case.tensors["input"].double())
    (y * case.tensors["probe"].double()).sum().backward()
    sizes = {key: p.grad.abs().max().item() for key, p in module.named_parameters()}
    largest = max(sizes.values())
    return {key: 1e-4 * largest for key, size in sizes.items() if size < 1e-12 * largest}


def _about(key: str) -> Callable[[str], str]:
    return lambda text: f"{key}: {text}"


@dataclass(frozen=True)
class Case:
    """A block with options, all of its tensors randomised, as a property is checked on it."""

    block: str
    channels: int
    options: dict[str, Any] = field(default_factory=dict)
    size: tuple[int, int] = (7, 5)
    stride: int = 1
    out_channels: int | None = None
    without_effect: frozenset[str] = frozenset()  # parameters of the published layout that cancel

    def __str__(self) -> str:
        """Returns the id of the case in a test's name."""
        options = [f"{k}={v}".replace("'", "").replace(" ", "") for k, v in self.options.items()]
        return "-".join([self.block, *options])

    def build(self, **placement: Any) -> nn.Module:
        """Builds the block; nothing in it is zero or one, so that each term counts."""
        module = create_block(self.block, self.channels, **self.options, **placement)
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for key, tensor in module.state_dict().items():
                if tensor.is_floating_point() and not tensor.is_meta:
                    fan_in = tensor[0].numel() if tensor.ndim > 1 else 1
                    noise = torch.randn(tensor.shape, generator=generator) / fan_in**0.5
                    tensor.copy_(noise.abs() + 0.5 if key.endswith("var") else noise)
        return module

    def input(self, batch: int = 3, size: tuple[int, int] | None = None) -> Tensor:
        """Returns a random map."""
        generator = torch.Generator().manual_seed(11)
        return torch.randn(batch, self.channels, *(size or self.size), generator=generator)

    def output_shape(self, x: Tensor) -> tuple[int, ...]:
        """Returns the documented shape of the output."""
        channels = self.out_channels or self.channels
        return (x.shape[0], channels, *(-(-n // self.stride) for n in x.shape[2:]))


def any_size(case: Case) -> None:
    module = case.build().eval()
    for size in SIZES:
        x = case.input(2, size)
        y = module(x)
        assert y.shape == case.output_shape(x), size
        assert y.dtype == x.dtype
        assert torch.isfinite(y).all(), size


def trains_every_parameter(case: Case) -> None:
    """In evaluation mode, because batch statistics cancel the bias in front of them."""
    module, x = case.build().double().eval(), case.input().double().requires_grad_()
    module(x).square().sum().backward()
    gradients = {"input": x.grad, **{n: p.grad for n, p in module.named_parameters()}}
    sizes = {n: 0.0 if g is None else g.abs().max().item() for n, g in gradients.items()}
    dead = {n for n, size in sizes.items() if not size > 1e-9 * max(sizes.values())}
    assert dead == case.without_effect
    module.float().train()(x.detach().float()).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters())


def images_are_independent(case: Case) -> None:
    module, x = case.build().eval(), case.input()
    assert_close(torch.cat([module(image[None]) for image in x]), module(x), **CLOSE)


def keeps_its_input(case: Case) -> None:
    module, x = case.build(), case.input()
    before = x.clone()
    module.train()(x)
    module.eval()(x)
    assert_close(x, before, **EXACT)


def empty_and_single_batch(case: Case) -> None:
    module = case.build().eval()
    for batch in (0, 1):
        x = case.input(batch)
        assert module(x).shape == case.output_shape(x)


def memory_formats(case: Case) -> None:
    module, x = case.build().eval(), case.input()
    y = module(x)
    last = x.to(memory_format=torch.channels_last)
    assert_close(module(last), y, **CLOSE)
    assert_close(module(x.mT.contiguous().mT), y, **CLOSE)
    assert_close(copy.deepcopy(module).to(memory_format=torch.channels_last)(last), y, **CLOSE)
    gradients = []
    for each in (x.clone(), last.clone()):
        each.requires_grad_()
        module(each).square().sum().backward()
        gradients.append(each.grad)
    assert _relative(gradients[1], gradients[0]) < 1e-5


def state_dict_round_trip(case: Case) -> None:
    module, x = case.build().eval(), case.input()
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other = create_block(case.block, case.channels, **case.options).eval()
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert_close(other(x), module(x), **EXACT)
    assert load_published(other, module.state_dict()).layout == "visgraft"


def copies_and_pickles(case: Case) -> None:
    module, x = case.build().eval(), case.input()
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert_close(other(x), module(x), **EXACT)
    assert "0x" not in repr(module)


def placement(case: Case) -> None:
    meta = case.build(device="meta")
    assert all(t.is_meta for t in meta.state_dict().values())
    assert meta.eval()(case.input().to("meta")).shape == case.output_shape(case.input())
    double = case.build(dtype=torch.float64)
    assert {t.dtype for t in double.state_dict().values()} <= {torch.float64, torch.int64}
    assert double.eval()(case.input().double()).dtype == torch.float64
    materialised = meta.to_empty(device="cpu").eval()
    materialised.load_state_dict(case.build().state_dict())
    assert_close(materialised(case.input()), case.build().eval()(case.input()), **EXACT)


def frozen(case: Case) -> None:
    module, x = case.build().eval().requires_grad_(False), case.input()
    assert not module(x).requires_grad
    module(x.requires_grad_()).sum().backward()
    assert x.grad is not None


def lower_precision(case: Case) -> None:
    module, x = case.build().eval(), case.input()
    exact = module(x)
    for dtype, tolerance in ROUNDED.items():
        half = copy.deepcopy(module).to(dtype)(x.to(dtype))
        assert half.dtype == dtype
        assert _relative(half, exact) < tolerance, dtype


def autocast(case: Case) -> None:
    module, x = case.build(), case.input().requires_grad_()
    with torch.no_grad():
        exact = module.eval()(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert _relative(module(x), exact) < ROUNDED[torch.bfloat16]
        loss = module.train()(x).float().square().sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in module.parameters())


def _relative(y: Tensor, exact: Tensor) -> float:
    return ((y.float() - exact).abs().max() / exact.abs().max()).item()


def gradients_are_right(case: Case) -> None:
    module = case.build().double().eval()
    x = case.input(2, (3, 4)).double()[:, :, :3].requires_grad_()
    assert torch.autograd.gradcheck(module, (x,), fast_mode=True)


def compiles(case: Case) -> None:
    _compile(case, dynamic=False, sizes=[case.size])


def compiles_for_all_sizes(case: Case) -> None:
    _compile(case, dynamic=True, sizes=[case.size, (9, 12), (17, 4)])


def _compile(case: Case, *, dynamic: bool, sizes: list[tuple[int, int]]) -> None:
    torch.compiler.reset()
    module = case.build().eval()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for size in sizes:
        results = []
        for run in (module, compiled):
            x = case.input(2, size).requires_grad_()
            y = run(x)
            y.square().sum().backward()
            results.append((y, x.grad))
        assert_close(results[1][0], results[0][0], **CLOSE)
        assert _relative(results[1][1], results[0][1]) < 1e-4
    torch.compiler.reset()


DYNAMIC = ({0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)


def exports(case: Case) -> None:
    module = case.build().eval()
    program = torch.export.export(module, (case.input(2),), dynamic_shapes=DYNAMIC).module()
    for batch, size in ((2, case.size), (4, (9, 12)), (3, (33, 20))):
        x = case.input(batch, size)
        assert_close(program(x), module(x), **CLOSE)


def exports_to_onnx(case: Case) -> None:
    """The file computes the same in onnxruntime at the traced size and at two others."""
    import onnxruntime

    module = case.build().eval()
    exported = torch.onnx.export(
        module, (case.input(2),), dynamo=True, dynamic_shapes=DYNAMIC, verbose=False
    )
    assert exported is not None
    session = onnxruntime.InferenceSession(exported.model_proto.SerializeToString())
    (name,) = (each.name for each in session.get_inputs())
    for batch, size in ((2, case.size), (4, (9, 12)), (3, (33, 20))):
        x = case.input(batch, size)
        (y,) = session.run(None, {name: x.numpy()})
        assert_close(torch.from_numpy(y), module(x).detach(), **CLOSE)


PROPERTIES: dict[str, Callable[[Case], None]] = {
    check.__name__: check
    for check in (
        any_size,
        trains_every_parameter,
        images_are_independent,
        keeps_its_input,
        empty_and_single_batch,
        memory_formats,
        state_dict_round_trip,
        copies_and_pickles,
        placement,
        frozen,
        lower_precision,
        autocast,
        gradients_are_right,
        compiles,
        exports,
    )
}
SLOW_PROPERTIES: dict[str, Callable[[Case], None]] = {
    check.__name__: check for check in (compiles_for_all_sizes, exports_to_onnx)
}
