import itertools

import pytest
import torch
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from tests.golden_table import golden_cases
from visgraft.ops.local_aggregation import LOCAL_AGGREGATION, local_aggregation

ELSEWHERE = ("reference", "triton", "native")  # the definition, and forms with files of their own
FASTER = [i.name for i in LOCAL_AGGREGATION.implementations if i.name not in ELSEWHERE]
TOLERANCE = {
    torch.float64: {"rtol": 1e-10, "atol": 1e-10},
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.bfloat16: {"rtol": 1e-2, "atol": 1e-2},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
}
CALLS = {  # kernel size, stride, padding, dilation, and weight channels, heads
    "k1": (1, 1, 0, 1, 4, 1),
    "k3": (3, 1, 1, 1, 2, 1),
    "k5, unshared": (5, 1, 2, 1, 4, 1),
    "k2, even kernel": (2, 1, 1, 1, 2, 1),
    "k3, stride 2": (3, 2, 1, 1, 2, 1),
    "k3, stride 3, wide padding": (3, 3, 4, 1, 1, 1),
    "k3, dilation 2, 3 heads": (3, 1, 2, 2, 2, 3),
    "k3, dilation 2, stride 2, 2 heads": (3, 2, 2, 2, 4, 2),
    "k3, no padding": (3, 1, 0, 1, 2, 1),
    "k7, dilation 3": (7, 1, 9, 3, 2, 1),
}


SIZES = [(1, 1), (1, 6), (2, 1), (7, 5), (8, 8)]


def out_size(call, size):
    kernel_size, stride, padding, dilation, *_ = CALLS[call]
    reach = dilation * (kernel_size - 1) + 1
    return [(n + 2 * padding - reach) // stride + 1 for n in size]


FITTING = [(c, s) for c in CALLS for s in SIZES if min(out_size(c, s)) > 0]


def arguments(call, size, dtype=torch.float64, batch=2, channels=4, weight_dtype=None):
    kernel_size, stride, padding, dilation, groups, heads = CALLS[call]
    out = out_size(call, size)
    x = torch.randn(batch, channels, *size).to(dtype)
    weight = torch.randn(batch, heads, groups, kernel_size**2, *out).to(weight_dtype or dtype)
    return [x.requires_grad_(), weight.requires_grad_()], (kernel_size, stride, padding, dilation)


def results(backend, tensors, call):
    out = local_aggregation(*tensors, *call, backend=backend)
    return [out, *torch.autograd.grad(out, tensors, upstream(out))]


def upstream(out):
    return torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).to(out.dtype)


def by_definition(x, weight, kernel_size, stride, padding, dilation):
    """The double sum of the docstring, position by position."""
    b, heads, groups, _, height, width = weight.shape
    channels = x.shape[1]
    out = torch.zeros(b, heads * channels, height, width, dtype=x.dtype)
    for n, m, c, i, j in itertools.product(*map(range, (b, heads, channels, height, width))):
        for u, v in itertools.product(range(kernel_size), repeat=2):
            row = i * stride - padding + u * dilation
            column = j * stride - padding + v * dilation
            if 0 <= row < x.shape[2] and 0 <= column < x.shape[3]:
                w = weight[n, m, c % groups, u * kernel_size + v, i, j]
                out[n, m * channels + c, i, j] += w * x[n, c, row, column]
    return out


@pytest.mark.parametrize("case", golden_cases("localagg-official"), ids=lambda case: case.name)
@pytest.mark.parametrize("backend", [*FASTER, "reference"])
def test_golden_of_each_backend(case, backend):
    check_recorded(case, backend)


@pytest.mark.parametrize("case", golden_cases("localagg-official"), ids=lambda case: case.name)
def test_golden(case):
    check_recorded(case, None)


def check_recorded(case, backend):
    stored, call = case.tensors, case.record["kwargs"]
    x, weight = (stored[name].clone().requires_grad_() for name in ("input", "weight"))
    out = local_aggregation(x, weight, **call, backend=backend)
    assert_close(out, stored["output_eval"], **case.tolerance("eval"))
    assert_close(out, stored["output_train"], **case.tolerance("train"))
    (out * stored["probe"]).sum().backward()
    assert_close(x.grad, stored["grad_input"], **case.tolerance("grad"))
    assert_close(weight.grad, stored["grad_weight"], **case.tolerance("grad"))


@pytest.mark.parametrize("call", ["k3", "k3, dilation 2, stride 2, 2 heads", "k2, even kernel"])
@pytest.mark.parametrize("backend", [*FASTER, "reference"])
def test_is_the_double_sum_of_the_docstring(backend, call):
    tensors, numbers = arguments(call, (4, 3), batch=1)
    with torch.no_grad():
        expected = by_definition(*tensors, *numbers)
        assert_close(local_aggregation(*tensors, *numbers, backend=backend), expected)


@pytest.mark.parametrize(("call", "size"), FITTING, ids=str)
@pytest.mark.parametrize("backend", FASTER)
def test_equals_reference(backend, call, size):
    tensors, numbers = arguments(call, size)
    expected = results("reference", tensors, numbers)
    for actual, wanted in zip(results(backend, tensors, numbers), expected, strict=True):
        assert_close(actual, wanted, **TOLERANCE[torch.float64])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("call", ["k3", "k3, stride 2", "k3, dilation 2, 3 heads"])
@pytest.mark.parametrize("backend", FASTER)
def test_equals_reference_in_other_dtypes(backend, call, dtype):
    tensors, numbers = arguments(call, (9, 6), dtype)
    expected = results("reference", tensors, numbers)
    for actual, wanted in zip(results(backend, tensors, numbers), expected, strict=True):
        assert actual.dtype == dtype
        assert_close(actual, wanted, **TOLERANCE[dtype])


@pytest.mark.parametrize("backend", [*FASTER, "reference"])
def test_result_has_the_dtype_of_x(backend):
    tensors, numbers = arguments("k3", (5, 4), torch.bfloat16, weight_dtype=torch.float32)
    out, grad_x, grad_weight = results(backend, tensors, numbers)
    assert (out.dtype, grad_x.dtype) == (torch.bfloat16, torch.bfloat16)
    assert grad_weight.dtype == torch.float32
    exact = results("reference", [t.detach().double().requires_grad_() for t in tensors], numbers)
    assert_close(out.double(), exact[0], **TOLERANCE[torch.bfloat16])
    assert_close(grad_weight.double(), exact[2], **TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("backend", [*FASTER, "reference"])
def test_low_precision_adds_up_in_float32(backend):
    """255 ones and a half: bfloat16 sums would stop counting at 256 and drop the half."""
    x = torch.ones(1, 1, 16, 16, dtype=torch.bfloat16)
    x[0, 0, 0, 0] = 0.5
    weight = torch.ones(1, 1, 1, 256, 1, 1, dtype=torch.bfloat16)
    out = local_aggregation(x, weight, 16, padding=0, backend=backend)
    assert out.item() == torch.tensor(255.5).bfloat16().item()


@pytest.mark.parametrize("call", ["k3", "k3, stride 2"])
@pytest.mark.parametrize("backend", FASTER)
def test_any_memory_layout(backend, call):
    (x, weight), numbers = arguments(call, (6, 9), batch=3)
    expected = results("reference", [x, weight], numbers)
    with torch.no_grad():
        scattered = torch.empty(*weight.shape[:-1], 2 * weight.shape[-1], dtype=weight.dtype)
        scattered[..., ::2] = weight
    layouts = [
        x.detach().to(memory_format=torch.channels_last),
        x.detach().mT.contiguous().mT,
        torch.cat([x.detach(), x.detach()], 1)[:, :4],
    ]
    for layout in layouts:
        tensors = [layout.requires_grad_(), scattered[..., ::2].requires_grad_()]
        for actual, wanted in zip(results(backend, tensors, numbers), expected, strict=True):
            assert_close(actual, wanted)


@pytest.mark.parametrize("backend", [*FASTER, "reference"])
def test_empty_batch(backend):
    tensors, numbers = arguments("k3", (5, 4), batch=0)
    out, grad_x, grad_weight = results(backend, tensors, numbers)
    assert out.shape == (0, 4, 5, 4)
    assert (grad_x.shape, grad_weight.shape) == (tensors[0].shape, tensors[1].shape)


def test_blocks_of_images_are_joined_right(monkeypatch):
    """A batch cut into blocks of one image equals the batch in one piece."""
    monkeypatch.setitem(local_aggregation_globals(), "_BLOCK", 1)
    tensors, numbers = arguments("k3, dilation 2, 3 heads", (7, 5), batch=5)
    expected = results("reference", tensors, numbers)
    for actual, wanted in zip(results("shifted", tensors, numbers), expected, strict=True):
        assert_close(actual, wanted)


def local_aggregation_globals():
    (shifted,) = (i for i in LOCAL_AGGREGATION.implementations if i.name == "shifted")
    return shifted.refusal.__globals__


@pytest.mark.parametrize("needed", [(True, False), (False, True)], ids=["x", "weight"])
def test_computes_only_the_gradient_asked_for(needed):
    tensors, numbers = arguments("k3", (5, 4))
    expected = results("reference", tensors, numbers)[1:]
    for tensor, wanted in zip(tensors, needed, strict=True):
        tensor.requires_grad_(wanted)
    out = local_aggregation(*tensors, *numbers, backend="shifted")
    out.backward(upstream(out))
    for tensor, wanted, gradient in zip(tensors, needed, expected, strict=True):
        if wanted:
            assert_close(tensor.grad, gradient)
        else:
            assert tensor.grad is None


@pytest.mark.parametrize("call", ["k3", "k3, dilation 2, stride 2, 2 heads"])
def test_first_and_second_derivatives(call):
    tensors, numbers = arguments(call, (3, 4), batch=1)

    def run(x, weight):
        return local_aggregation(x, weight, *numbers, backend="shifted")

    assert torch.autograd.gradcheck(run, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, tensors, fast_mode=True)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("call", ["k3", "k3, stride 2"])
def test_operators_are_registered_correctly(call):
    (x, weight), numbers = arguments(call, (4, 3))
    torch.library.opcheck(torch.ops.visgraft.local_aggregation.default, (x, weight, *numbers))
    grad = local_aggregation(x, weight, *numbers).detach().requires_grad_()
    torch.library.opcheck(
        torch.ops.visgraft.local_aggregation_backward.default,
        (grad, x, weight, *numbers, True, True),
    )


def test_flops_are_two_per_multiplication():
    tensors, numbers = arguments("k3, dilation 2, 3 heads", (7, 5))
    with FlopCounterMode(display=False) as counter:
        out = local_aggregation(*tensors, *numbers)
    forward = 2 * 9 * out.numel()
    assert counter.get_total_flops() == forward
    with FlopCounterMode(display=False) as counter:
        local_aggregation(*tensors, *numbers).sum().backward()
    assert counter.get_total_flops() == 3 * forward


def test_eager_code_takes_the_lean_form_and_tracing_the_ordinary_operators():
    tensors, numbers = arguments("k3", (4, 4), torch.float32)
    answers = LOCAL_AGGREGATION.explain(*tensors, *numbers)
    del answers["native"]  # depends on the machine
    assert answers == {
        "triton": "tensors are on cpu; this form is for CUDA",
        "shifted": "ok",
        "traced": "ok",
        "reference": "ok",
    }

    class Module(torch.nn.Module):
        def forward(self, x, weight):
            return local_aggregation(x, weight, *numbers)

    graph = torch.export.export(Module(), tuple(tensors)).graph
    called = {str(node.target) for node in graph.nodes if node.op == "call_function"}
    assert called
    assert not any("visgraft" in name for name in called)


def test_is_traced_without_a_break():
    tensors, numbers = arguments("k3, stride 2", (6, 4), torch.float32)
    compiled = torch.compile(
        lambda x, weight: local_aggregation(x, weight, *numbers),
        fullgraph=True,
        backend="aot_eager",
    )
    assert_close(compiled(*tensors), local_aggregation(*tensors, *numbers))


def test_works_on_meta_tensors():
    tensors, numbers = arguments("k3, stride 2", (6, 5))
    out = local_aggregation(*(t.to("meta") for t in tensors), *numbers)
    assert out.shape == local_aggregation(*tensors, *numbers).shape
    assert out.is_meta


def test_padding_none_keeps_the_size():
    x, weight = torch.randn(1, 4, 6, 7), torch.randn(1, 1, 2, 25, 6, 7)
    assert_close(
        local_aggregation(x, weight, 5, dilation=2),
        local_aggregation(x, weight, 5, padding=4, dilation=2),
    )


X, WEIGHT = torch.zeros(2, 6, 5, 4), torch.zeros(2, 1, 3, 9, 5, 4)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X, WEIGHT, 0), {}, r"local_aggregation: kernel_size must be an integer >= 1, got 0"),
        ((X, WEIGHT, 3.0), {}, r"kernel_size must be an integer >= 1, got 3\.0"),
        ((X, WEIGHT, 3), {"stride": True}, r"stride must be an integer >= 1, got True"),
        ((X, WEIGHT, 3), {"dilation": 0}, r"dilation must be an integer >= 1, got 0"),
        ((X, WEIGHT, 3), {"padding": -1}, r"padding must be an integer >= 0, got -1"),
        ((X[0], WEIGHT, 3), {}, r"x must be \(B, C, H, W\), got \(6, 5, 4\)"),
        ((X, X, 3), {}, r"weight must be \(B, M, Cw, K \* K, Ho, Wo\), got \(2, 6, 5, 4\)"),
        ((X.int(), WEIGHT, 3), {}, r"x must be floating point, got torch\.int32"),
        ((X, WEIGHT.bool(), 3), {}, r"weight must be floating point, got torch\.bool"),
        ((X[:, :5], WEIGHT, 3), {}, r"weight's channels must divide those of x, got 3 and 5"),
        ((X, WEIGHT, 5), {}, r"weight must be \(2, 1, 3, 25, 5, 4\) for this x, got \(2, 1, 3, 9"),
        ((X, WEIGHT, 3), {"stride": 2}, r"weight must be \(2, 1, 3, 9, 3, 2\) for this x, got"),
        ((X[:1], WEIGHT, 3), {}, r"weight must be \(1, 1, 3, 9, 5, 4\) for this x, got \(2, 1,"),
        ((X, WEIGHT[:, :0], 3), {}, r"weight must have at least one head, got 0"),
        ((X, WEIGHT, 7), {"padding": 0}, r"kernel spans 7 positions, but the map is 5 x 4 with pa"),
        ((X, WEIGHT, 3), {"backend": "cupy"}, r"no backend 'cupy'; it has triton, native, shifted"),
    ],
)
def test_rejects(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        local_aggregation(*arguments, **options)
