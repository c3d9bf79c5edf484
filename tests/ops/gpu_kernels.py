"""What the tests of GPU kernels share: Triton's interpreter, its compiler, and hostile memory.

The interpreter has to be asked for before Triton is imported, so the checks of values lie in files
of their own (``*_on_gpu.py``, which pytest does not collect by itself) and run in another process:
there on CPU tensors, or on the GPU where there is one.
"""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, interpreter

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def _multiply_bfloat16(self, a, b, out, _input_precision, _max_num_imprecise_acc):
    """Multiplies matrices; the interpreter's own method takes the bits of bfloat16 for integers."""

    def wide(matrix):
        if matrix.dtype.scalar != tl.bfloat16:
            return matrix.data.astype(np.float32)
        return (matrix.data.astype(np.uint32) << 16).view(np.float32)

    return interpreter.TensorHandle(wide(a) @ wide(b) + out.data, out.dtype.scalar)


if INTERPRETED:
    interpreter.InterpreterBuilder.create_dot = _multiply_bfloat16


def run_checks(*, interpreted):
    """Runs all checks of values, on the CPU by the interpreter or on the GPU."""
    environment = os.environ | {"TRITON_INTERPRET": str(int(interpreted))}
    paths = sorted(Path(__file__).parent.glob("*_on_gpu.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *paths]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert re.search(r"\d+ passed", done.stdout), done.stdout


class _Hopper:
    """Stands in for the driver of a GPU that is not there, as far as the compiler asks."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, _device=None):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


class _Recorder:
    """Stands in for a kernel: compiles what would be launched."""

    def __init__(self, kernel, compiled):
        self.kernel = kernel
        self.compiled = compiled

    def __getitem__(self, grid):
        def compile_launch(*args, **options):
            self.compiled.append(self.kernel.warmup(*args, grid=grid, **options))

        return compile_launch


def compile_for_hopper(monkeypatch, folder, module, kernels, launches):
    """Returns what the compiler makes of the launches, for a GPU of compute capability 9.0."""
    monkeypatch.setattr(driver, "_active", _Hopper())
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))  # nothing compiled earlier
    operator, compiled = importlib.import_module(module), []
    for name in kernels:
        monkeypatch.setattr(operator, name, _Recorder(getattr(operator, name), compiled))
    launches(operator)
    return compiled


def resources(kernel, folder):
    """Returns registers and bytes of stack per thread, and bytes of shared memory."""
    path = folder / "kernel.cubin"
    path.write_bytes(kernel.asm["cubin"])
    command = [_CUOBJDUMP, "--dump-resource-usage", path]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", text).groups())
    return registers, stack, kernel.metadata.shared


def surrounded(x, margin=300):
    """Returns the same values between NaNs, which a read that strays would bring in."""
    whole = torch.full((x.numel() + 2 * margin,), float("nan"), dtype=x.dtype, device=x.device)
    inner = whole[margin:-margin].view(x.shape)
    inner.copy_(x)
    return inner


def sliced(x):
    """Returns the same values as every second one of the columns of a larger map of NaNs."""
    *outer, height, width = x.shape
    whole = x.new_full((*outer, height + 3, 2 * width + 1), float("nan"))
    inner = whole[..., 1 : height + 1, 1::2]
    inner.copy_(x)
    return inner


def channels_last(x):
    """Returns the same values with the channels of a position beside each other."""
    order = (0, *range(x.ndim - 2, x.ndim), *range(1, x.ndim - 2))
    back = sorted(range(x.ndim), key=order.__getitem__)
    return x.permute(order).contiguous().permute(back)


LAYOUTS = {"surrounded": surrounded, "sliced": sliced, "channels last": channels_last}
