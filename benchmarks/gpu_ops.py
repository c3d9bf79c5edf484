"""The operations on a GPU: time, memory and the share of the bandwidth that a plain copy reaches.

Each operation, forward and forward with backward, in its own kernels, in its other forms, unfolded
where it looks at neighbours, and with that definition compiled by `torch.compile`. Variants
alternate within each round, over as many sets of inputs as it takes to fill the cache twice; a time
is the median over rounds, from CUDA events. `share_of_copy` is the time a copy of the fewest bytes
the call has to move would take, at the bandwidth measured in the same run, divided by the time of
the call. Nothing is timed that does not agree with the definition on a batch of two.

    python benchmarks/gpu_ops.py --out gpu_ops.json
    TRITON_INTERPRET=1 python benchmarks/gpu_ops.py --tiny --rounds 1 --batch 2     # without a GPU

The last line shows whether the script runs; Triton's interpreter cannot multiply bfloat16 matrices,
so it takes float32 alone.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from visgraft.ops._dispatch import Op
from visgraft.ops.batch_norm_activation import BATCH_NORM_ACTIVATION
from visgraft.ops.local_aggregation import LOCAL_AGGREGATION
from visgraft.ops.relative_attention import RELATIVE_ATTENTION
from visgraft.ops.selection import SELECTION
from visgraft.ops.strip_gate import STRIP_GATE, STRIP_MEANS
from visgraft.ops.window_attention import WINDOW_ATTENTION

Run = Callable[..., Tensor]
L2_BYTES = 50 * 2**20  # of the largest GPU so far; more input sets than that only cost memory
SIZES = ((64, 56), (128, 28), (256, 14), (512, 7))  # channels, height and width
RELATIVE_SIZES = ((512, 14), (512, 40), (256, 64))
NUM_HEADS, SHARE = 4, 8


@dataclass(frozen=True)
class Case:
    """One operation at one size.

    Attributes:
        name: Of operation and size.
        make: Returns a new set of inputs for a batch.
        variants: What to measure, by name; ``reference`` is what the others must agree with.
        elements: Numbers per image that a forward pass reads and writes at least, and a backward.
    """

    name: str
    make: Callable[[int], list[Tensor]]
    variants: dict[str, Run]
    elements: tuple[int, int]


def unfolded_aggregation(x: Tensor, weight: Tensor) -> Tensor:
    """Unfold, multiply, add, in the dtype of the map."""
    b, c, h, w = x.shape
    columns = functional.unfold(x, 3, padding=1).view(b, SHARE, c // SHARE, 9, h, w)
    return (columns * weight).sum(3).view(b, c, h, w)


def unfolded_window(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Unfolds reflected keys and values, in the dtype of the map; needs more than 3 rows."""
    b, m, d, h, w = query.shape

    def windows(x: Tensor) -> Tensor:
        padded = functional.pad(x.flatten(0, 1), [3] * 4, "reflect")
        return functional.unfold(padded, 7).view(b, m, d, 49, h, w)

    logits = (query.unsqueeze(3) * windows(key)).sum(2, keepdim=True) * d**-0.5
    return (logits.softmax(3) * windows(value)).sum(3)


def forms(op: Op, *numbers: object) -> dict[str, Run]:
    """Returns the forms for GPUs, each of which returns the first result."""

    def first(run: Callable, *tensors: Tensor) -> Tensor:
        results = run(*tensors, *numbers)
        return results if isinstance(results, Tensor) else results[0]

    return {
        i.name: partial(first, i.run)
        for i in op.implementations
        if i.name not in ("native", "traced")
    }


def passes_over_maps(dtype: torch.dtype, device: str, *, tiny: bool) -> Iterator[Case]:
    """Yields the operations that memory alone limits, with their definition compiled."""

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype).requires_grad_()

    def case(
        op: Op,
        label: str,
        make: Callable[[int], list[Tensor]],
        elements: tuple[int, int],
        *numbers: object,
    ) -> Case:
        variants = forms(op, *numbers)
        variants["compiled"] = torch.compile(variants["reference"], dynamic=False)
        return Case(f"{op.name} {label}", make, variants, elements)

    for c, n in ((16, 4),) if tiny else SIZES:
        label, inner = f"{c} x {n} x {n}", c * n * n
        for op, sizes, passes in (
            (SELECTION, ((c, n, n), (c, n, n), (c, 1, 1)), (3, 5)),
            (STRIP_GATE, ((c, n, n), (c, n, 1), (c, 1, n)), (2, 3)),
            (STRIP_MEANS, ((c, n, n),), (1, 1)),
        ):
            elements = passes[0] * inner, passes[1] * inner
            yield case(
                op, label, lambda b, sizes=sizes: [randn(b, *size) for size in sizes], elements
            )
        for activation in ("relu", "silu"):
            yield case(
                BATCH_NORM_ACTIVATION,
                f"{activation} {label}",
                lambda b, c=c, n=n: [
                    randn(b, c, n, n),
                    *(torch.randn(c, device=device).requires_grad_() for _ in range(2)),
                ],
                (3 * inner, 5 * inner),
                1e-5,
                activation,
            )


def cases(dtype: torch.dtype, device: str, *, tiny: bool) -> list[Case]:
    """Returns all operations at all sizes."""

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype).requires_grad_()

    result = list(passes_over_maps(dtype, device, tiny=tiny))
    for c, n in ((16, 4),) if tiny else SIZES:
        inner, taps = c * n * n, 9 * c // SHARE * n * n
        result.append(
            Case(
                f"local_aggregation {c} x {n} x {n}",
                lambda b, c=c, n=n: [randn(b, c, n, n), randn(b, 1, c // SHARE, 9, n, n)],
                {
                    **forms(LOCAL_AGGREGATION, 3, 1, 1, 1),
                    "unfolded": unfolded_aggregation,
                    "compiled": torch.compile(unfolded_aggregation, dynamic=False),
                },
                (2 * inner + taps, 3 * inner + 2 * taps),
            )
        )
        result.append(
            Case(
                f"window_attention {c} x {n} x {n}",
                lambda b, c=c, n=n: [randn(b, NUM_HEADS, c // NUM_HEADS, n, n) for _ in range(3)],
                {
                    **forms(WINDOW_ATTENTION, 7, 1, 1),
                    "unfolded": unfolded_window,
                    "compiled": torch.compile(unfolded_window, dynamic=False),
                },
                (4 * inner, 8 * inner),
            )
        )
    for c, n in ((16, 3),) if tiny else RELATIVE_SIZES:
        d = c // NUM_HEADS
        result.append(
            Case(
                f"relative_attention {c} x {n} x {n}",
                lambda b, d=d, n=n: [
                    *(randn(b, NUM_HEADS, d, n, n) for _ in range(3)),
                    *(randn(2 * n - 1, d) for _ in range(2)),
                ],
                forms(RELATIVE_ATTENTION),
                (4 * c * n * n, 8 * c * n * n),
            )
        )
    return result


def forward(run: Run, inputs: Sequence[Tensor], _: Tensor) -> list[Tensor]:
    """Returns the output."""
    with torch.no_grad():
        return [run(*inputs)]


def forward_and_backward(run: Run, inputs: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """Returns the output and all gradients."""
    out = run(*inputs)
    return [out, *torch.autograd.grad(out, inputs, grad)]


PASSES = {"forward": forward, "forward_and_backward": forward_and_backward}


def seconds(call: Callable[[], object], device: str) -> float:
    """Returns the time of a call."""
    if device == "cpu":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def copy_bandwidth(device: str, *, tiny: bool) -> float:
    """Returns bytes read and written per second by a copy that no cache holds."""
    source = torch.randn(2**16 if tiny else 2**28, device=device)
    target = torch.empty_like(source)
    times = [seconds(lambda: target.copy_(source), device) for _ in range(20)]
    return 2 * source.numel() * source.element_size() / statistics.median(times)


def disagreement(case: Case, run: Run) -> float:
    """Returns the largest relative error of output and gradients, by norm, on a batch of two."""
    inputs = case.make(2)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    expected = case.variants["reference"](*exact)
    grad = torch.randn(expected.shape, device=expected.device).to(inputs[0].dtype)
    wanted = [expected, *torch.autograd.grad(expected, exact, grad.double())]
    got = forward_and_backward(run, inputs, grad)
    return max(
        ((a.double() - b).norm() / b.norm()).item() for a, b in zip(got, wanted, strict=True)
    )


def measure(case: Case, batch: int, rounds: int, device: str, bandwidth: float) -> dict:
    """Measures all variants of a case; one that cannot run is replaced by the reason."""
    one = case.make(batch)
    size = one[0].element_size()
    bytes_of_set = sum(t.numel() for t in one) * size
    sets = [one, *(case.make(batch) for _ in range(min(8, 2 * L2_BYTES // bytes_of_set)))]
    report: dict = {"case": case.name, "batch": batch, "input_sets": len(sets), "variants": {}}
    grad = torch.randn(case.variants["reference"](*case.make(1)).shape[1:], device=device)
    grad = grad.to(one[0].dtype).expand(batch, *grad.shape).contiguous()
    limit = 5e-2 if size == 2 else 1e-4
    torch.compiler.reset()  # a function that was compiled for many sizes is compiled no more
    usable: dict[str, Run] = {}
    for name, run in case.variants.items():
        try:
            error = disagreement(case, run)
            forward_and_backward(run, one, grad)  # compiles, and shows whether it fits
        except (RuntimeError, ValueError) as problem:
            report["variants"][name] = {"cannot_run": str(problem).splitlines()[0]}
            continue
        report["variants"][name] = {"relative_error": error}
        if error < limit:
            usable[name] = run
        else:
            print(f"{case.name}: {name} is wrong, relative error {error:.1e}", file=sys.stderr)
    for label, run_pass in PASSES.items():
        times: dict[str, list[float]] = {name: [] for name in usable}
        memory = {}
        for number in range(rounds + 2):
            inputs = sets[number % len(sets)]
            for name, run in usable.items():
                if device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                    before = torch.cuda.memory_allocated()
                elapsed = seconds(partial(run_pass, run, inputs, grad), device)
                if device == "cuda":
                    memory[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
                if number > 1:  # after two to warm up
                    times[name].append(elapsed)
        least = case.elements[0] if label == "forward" else sum(case.elements)
        floor = least * batch * size / bandwidth
        for name, values in times.items():
            report["variants"][name][label] = {
                "microseconds": round(1e6 * statistics.median(values), 1),
                "spread": round((max(values) - min(values)) / statistics.median(values), 3),
                "share_of_copy": round(floor / statistics.median(values), 4),
                "peak_mebibytes": round(memory[name], 1) if name in memory else None,
            }
    return report


def main() -> None:
    """Measures everything and writes one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batch", type=int, default=256, help="images; relative attention: an 8th")
    parser.add_argument("--dtype", nargs="+", help="default: bfloat16 and float32")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--tiny", action="store_true", help="the smallest maps, also without a GPU")
    parser.add_argument("--out", type=Path, help="file for the JSON; standard output by default")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.tiny:
        parser.error("there is no GPU; --tiny shows on a CPU whether the script runs")
    torch.manual_seed(0)
    bandwidth = copy_bandwidth(device, tiny=options.tiny)
    document = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu: times mean nothing",
        "torch": torch.__version__,
        "copy_gigabytes_per_second": round(bandwidth / 1e9, 1),
        "rounds": options.rounds,
        "measured": [],
    }
    for name in options.dtype or (["bfloat16", "float32"] if device == "cuda" else ["float32"]):
        for case in cases(getattr(torch, name), device, tiny=options.tiny):
            if options.only not in case.name:
                continue
            batch = max(1, options.batch // (8 if case.name.startswith("relative") else 1))
            report = measure(case, batch, options.rounds, device, bandwidth)
            document["measured"].append({"dtype": name, **report})
            print(f"measured {name} {case.name}", file=sys.stderr)
    text = json.dumps(document, indent=2)
    if options.out:
        options.out.write_text(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
