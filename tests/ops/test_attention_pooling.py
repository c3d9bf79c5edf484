import pytest
import torch
from torch.testing import assert_close

from tests.ops.native_checks import close, in_float64, poisoned
from visgraft.blocks import GlobalContext
from visgraft.ops.attention_pooling import ATTENTION_POOLING, attention_pooling

SHAPES = [(2, 3, 1, 1), (1, 2, 3, 5), (3, 9, 7, 4), (0, 2, 4, 4), (2, 17, 13, 11)]


def make(shape, dtype=torch.float32):
    c = shape[1]
    tensors = torch.randn(shape), torch.randn(1, c, 1, 1), torch.randn(1)
    return [t.to(dtype).requires_grad_() for t in tensors]


def results(backend, tensors, *, with_map=True):
    """Returns both results, the map as used by a product, and the gradients of their sum."""
    mean, handed = attention_pooling(*tensors, backend=backend)
    outs = [mean, handed * handed] if with_map else [mean]
    probes = [
        torch.linspace(-1, 2, o.numel(), dtype=torch.float64).view(o.shape).to(o.dtype)
        for o in outs
    ]
    return [*outs, *torch.autograd.grad(outs, [t for t in tensors if t.requires_grad], probes)]


def reference(tensors, **options):
    return results("reference", in_float64(tensors), **options)


@pytest.mark.parametrize("with_map", [True, False])
def test_equals_reference(with_map):
    for shape in SHAPES:
        tensors = make(shape)
        expected = reference(tensors, with_map=with_map)
        with poisoned():
            ours = results("joint", tensors, with_map=with_map)
        close(ours[:-1], expected[:-1], torch.float32)
        assert_close(ours[-1], torch.zeros(1), rtol=0, atol=1e-5)  # the bias has no effect


def test_bfloat16_is_as_exact_as_the_reference():
    for shape in SHAPES[1:]:
        tensors = make(shape, torch.bfloat16)
        expected = reference(tensors)[:-1]
        ours, theirs = (
            [
                (mine.double() - wanted).norm().item()
                for mine, wanted in zip(results(backend, tensors)[:-1], expected, strict=True)
            ]
            for backend in ("joint", "reference")
        )
        scales = [wanted.norm().item() for wanted in expected]
        for mine, other, scale in zip(ours, theirs, scales, strict=True):
            assert mine <= 1.5 * other + 4e-3 * scale


def test_gradients_in_float64():
    tensors = in_float64(make((2, 3, 4, 5)))

    def both(*inputs):
        mean, handed = attention_pooling(*inputs, backend="joint")
        return mean, handed * handed

    assert torch.autograd.gradcheck(both, tensors)
    assert torch.autograd.gradgradcheck(both, tensors)


def test_gradients_that_are_differentiated():
    tensors = in_float64(make((2, 3, 4, 5)))
    grads = []
    for backend in ("joint", "reference"):
        mean, handed = attention_pooling(*tensors, backend=backend)
        value = (mean**2).sum() + (handed**3).sum()
        grads.append(torch.autograd.grad(value, tensors[:2], create_graph=True))
    assert_close(*grads)


def test_the_gradient_of_one_alone():
    for place in range(2):
        tensors = make((2, 3, 3, 5))
        for other in range(3):
            tensors[other].requires_grad_(other == place)
        for with_map in (True, False)[place:]:
            expected = reference(tensors, with_map=with_map)
            close(results("joint", tensors, with_map=with_map), expected, torch.float32)


def test_the_weight_of_a_map_without_gradient():
    x, weight, bias = make((2, 3, 3, 5))
    ours, theirs = (
        torch.autograd.grad(
            attention_pooling(x.detach(), weight, bias, backend=backend)[0].sum(), weight
        )
        for backend in ("joint", "reference")
    )
    assert_close(ours, theirs)


def test_needs_no_bias():
    x, weight, bias = (t.detach() for t in make((2, 3, 3, 5)))
    for backend in ("joint", "reference"):
        pair = (attention_pooling(x, weight, b, backend=backend)[0] for b in (None, bias))
        assert_close(*pair)


def test_the_gradient_of_the_map_is_left_alone():
    """What comes from elsewhere may belong to somebody else."""
    x, weight, bias = make((2, 3, 3, 5))
    mean, handed = attention_pooling(x, weight, bias, backend="joint")
    grad = torch.randn_like(x)
    before = grad.clone()
    torch.autograd.grad([mean, handed], [x], [torch.ones_like(mean), grad])
    assert torch.equal(grad, before)


@pytest.mark.parametrize("fuse", [("add",), ("add", "mul")])
def test_a_block_that_is_watched_computes_the_same(fuse):
    block = GlobalContext(16, reduction=4, fuse=fuse).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 16, 5, 7, dtype=torch.float64, requires_grad=True)
    inputs = [x, *block.parameters()]
    expected = torch.autograd.grad(block(x).square().sum(), inputs)
    seen = []
    block.attend.register_forward_hook(lambda _m, _i, out: seen.append(out.shape))
    found = torch.autograd.grad(block(x).square().sum(), inputs)
    assert seen == [(2, 1, 5, 7)]
    assert_close(found, expected)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x, w: (x.mT, w), "needs maps that lie row by row in memory"),
        (lambda x, w: (x.bfloat16(), w), "needs one dtype, got torch.bfloat16 and torch.float32"),
        (
            lambda x, w: (x.to("meta"), w.to("meta")),
            "has been measured with CPU tensors only, got meta",
        ),
    ],
)
def test_refuses_in_a_sentence(change, reason):
    x, weight, _ = make((2, 3, 4, 5))
    assert ATTENTION_POOLING.explain(*change(x, weight), None)["joint"] == reason


def test_leaves_autocast_to_ordinary_operators():
    with torch.autocast("cpu", torch.bfloat16):
        answer = ATTENTION_POOLING.explain(*make((2, 3, 4, 5)))["joint"]
    assert answer == "autocast chooses the precision of ordinary operators"


def test_refuses_wrong_shapes():
    x, weight, bias = make((2, 3, 4, 5))
    with pytest.raises(ValueError, match=r"a weight \(1, C, 1, 1\), got .* and \(3, 1, 1\)$"):
        attention_pooling(x, weight[0], bias)
    with pytest.raises(ValueError, match=r"attention_pooling: needs a bias \(1,\), got \(\)"):
        attention_pooling(x, weight, bias[0])
