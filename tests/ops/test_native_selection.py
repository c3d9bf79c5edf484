import pytest
import torch

from tests.ops.native_checks import (
    check_equal_bits,
    close,
    gradients,
    in_float64,
    needs,
    poisoned,
)
from visgraft.ops.selection import SELECTION, selection
from visgraft.ops.selection.native import NATIVE
from visgraft.ops.selection.reference import selection_reference

SHAPES = [(2, 3, 1, 1), (1, 2, 3, 3), (2, 3, 7, 7), (1, 2, 4, 8), (2, 2, 61, 37), (0, 2, 4, 4)]


@pytest.fixture(autouse=True)
def _available():
    needs(NATIVE, *make((1, 1, 1, 1)))


def make(shape, dtype=torch.float32):
    first, second = (torch.randn(shape, dtype=dtype).requires_grad_() for _ in range(2))
    return [first, second, torch.rand(*shape[:2], 1, 1, dtype=dtype).requires_grad_()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equals_reference(dtype):
    for shape in SHAPES:
        tensors = make(shape, dtype)
        expected = gradients(selection_reference, in_float64(tensors), ())
        with poisoned():
            close(gradients(NATIVE.run, tensors, ()), expected, dtype)


def test_share_of_another_dtype():
    first, second, share = make((2, 3, 5, 4), torch.bfloat16)
    share = share.detach().float().requires_grad_()
    ours = gradients(NATIVE.run, [first, second, share], ())
    assert [t.dtype for t in ours] == [torch.bfloat16] * 3 + [torch.float32]
    expected = gradients(selection_reference, in_float64([first, second, share]), ())
    close(ours[:3], expected[:3], torch.bfloat16)
    torch.testing.assert_close(ours[3].double(), expected[3], rtol=0, atol=0.1)


def test_threads_do_not_change_a_bit(monkeypatch):
    check_equal_bits(NATIVE.run, make((3, 7, 6, 5)), (), monkeypatch)


def test_second_derivatives():
    def second(run, tensors):
        first = torch.autograd.grad((run(*tensors) ** 2).sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum((g * g).sum() for g in first), tensors)

    tensors = make((2, 3, 3, 4))
    close(
        second(NATIVE.run, tensors),
        second(selection_reference, in_float64(tensors)),
        torch.float32,
    )


def test_the_gradient_of_one_alone():
    for place in range(3):
        tensors = make((2, 3, 3, 5))
        for other in range(3):
            tensors[other].requires_grad_(other == place)
        expected = gradients(selection_reference, in_float64(tensors), ())
        close(gradients(NATIVE.run, tensors, ()), expected, torch.float32)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_operators_are_registered_correctly():
    tensors = make((2, 3, 4, 3))
    ops = torch.ops.visgraft
    torch.library.opcheck(ops.selection_native.default, tuple(tensors))
    grad = torch.randn(2, 3, 4, 3)
    torch.library.opcheck(
        ops.selection_native_backward.default, (grad, *(t.detach() for t in tensors))
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda a, b, s: (a.double(), b.double(), s), "needs float32 or bfloat16, got float64"),
        (
            lambda a, b, s: (a, b.bfloat16(), s),
            "needs maps of one dtype, got torch.float32 and torch.bfloat16",
        ),
        (
            lambda a, b, s: (a, b.to(memory_format=torch.channels_last), s),
            "needs maps that both lie row by row in memory, or both channels_last",
        ),
    ],
)
def test_refuses_in_a_sentence(change, reason):
    assert SELECTION.explain(*change(*make((2, 3, 4, 4))))["native"] == reason


def test_refuses_wrong_shapes():
    first, second, share = make((2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"a share \(B, C, 1, 1\), got .* and \(2, 3, 1\)"):
        selection(first, second, share[..., 0])
