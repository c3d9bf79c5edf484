"""The targets of the library's speed, and how each is read from the results of `visgraft bench`."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

__all__ = ["TARGETS", "Results", "Target"]

BOTH, FORWARD = "forward and backward", "forward"
MAPS = ((8, 64, 56, 56), (8, 256, 14, 14), (4, 512, 7, 7), (2, 256, 40, 40))
NOTHING = "not measured"


class Results:
    """The records of one run of each document, looked up by what they measured."""

    def __init__(self, documents: Iterable[dict[str, Any]], allocator: str = "tuned") -> None:
        self.records = {
            (*_key(record), document["device"].split(":")[0]): record
            for document in documents
            for run in document["runs"]
            if run["allocator"] == allocator
            for record in run["records"]
            if "graph_breaks" not in record
        }

    def find(
        self,
        case: str,
        shape: Sequence[int],
        step: str,
        *,
        dtype: str = "float32",
        channels_last: bool = False,
        device: str = "cpu",
    ) -> dict[str, Any] | None:
        """Returns one record, or None."""
        return self.records.get((case, tuple(shape), step, dtype, channels_last, device))

    def ratio(self, record: dict[str, Any] | None, name: str, other: str) -> float | None:
        """Returns the time of a form to that of another, by round, the median."""
        timings = {} if record is None else record["timings"]
        if name not in timings or other not in timings:
            return None
        pairs = zip(timings[name]["readings"], timings[other]["readings"], strict=True)
        return median(own / its for own, its in pairs)

    def memory(self, record: dict[str, Any] | None, name: str, other: str) -> float | None:
        """Returns the peak memory of a form to that of another."""
        timings = {} if record is None else record["timings"]
        if name not in timings or other not in timings:
            return None
        return timings[name]["peak_memory"] / timings[other]["peak_memory"]


def _key(record: dict[str, Any]) -> tuple[Any, ...]:
    names = ("case", "shape", "step", "dtype", "channels_last")
    return tuple(tuple(v) if isinstance(v := record[n], list) else v for n in names)


@dataclass(frozen=True)
class Target:
    """One line of the table.

    Attributes:
        what: Is measured.
        first: The least that is wanted.
        goal: What is wanted.
        reached: Reads it from the results.
        why: What stands in the way of the first number or of the goal; empty where both are met.
    """

    what: str
    first: str
    goal: str
    reached: Callable[[Results], str]
    why: str = ""


def _text(values: Sequence[float | None], *, inverse: bool = False) -> str:
    """Joins ratios; ``inverse`` tells how many times faster or smaller instead."""
    if all(value is None for value in values):
        return NOTHING
    shown = [None if v is None else 1 / v if inverse else v for v in values]
    return " / ".join("-" if v is None else f"{v:.1f}" if inverse else f"{v:.2f}" for v in shown)


def _ratios(
    results: Results, case: str, name: str, other: str, shapes: Sequence[Sequence[int]] = MAPS
) -> list[float | None]:
    return [results.ratio(results.find(case, s, BOTH), name, other) for s in shapes]


def _memories(
    results: Results, case: str, name: str, other: str, shapes: Sequence[Sequence[int]] = MAPS
) -> list[float | None]:
    return [results.memory(results.find(case, s, BOTH), name, other) for s in shapes]


def _times(case: str, name: str, other: str) -> Callable[[Results], str]:
    def read(results: Results) -> str:
        faster = _text(_ratios(results, case, other, name), inverse=False)
        if faster == NOTHING:
            return NOTHING
        memory = _text(_memories(results, case, other, name))
        return f"{faster} times faster, {memory} times less memory"

    return read


def _against_convolution(case: str, *, memory: str = "") -> Callable[[Results], str]:
    def read(results: Results) -> str:
        text = _text(_ratios(results, case, "visgraft", "conv3x3"))
        record = results.find(case, MAPS[0], BOTH)
        if record is not None and memory == "ratio":
            held = results.memory(record, "visgraft", "conv3x3")
            text += f"; memory at 56x56 {held:.1f} times the convolution's"
        if record is not None and memory == "MiB":
            peak = {
                name: t["peak_memory"] / 2**20
                for name, t in record["timings"].items()
                if name in ("visgraft", "circulating")
            }
            text += "; memory at 56x56 " + ", ".join(f"{n} {p:.0f} MiB" for n, p in peak.items())
        return text

    return read


def _attention(results: Results) -> str:
    shapes = {"14x14": (8, 512, 14, 14), "7x7": (8, 512, 7, 7)}
    shapes |= {"40x40": (2, 256, 40, 40), "64x64": (1, 256, 64, 64)}
    parts = []
    for name, shape in shapes.items():
        record = results.find("relative_attention", shape, BOTH)
        time = results.ratio(record, "visgraft", "circulating")
        memory = results.memory(record, "visgraft", "circulating")
        if time is not None and memory is not None:
            parts.append(f"{name}: {time:.2f} times the time, {memory:.2f} times the memory")
    return "; ".join(parts) or NOTHING


def _selective_kernel(results: Results) -> str:
    ratio = results.ratio(results.find("selective_kernel", MAPS[1], BOTH), "visgraft", "conv3x3")
    last = results.find("selective_kernel", MAPS[1], BOTH, channels_last=True)
    other = results.ratio(last, "visgraft", "conv3x3")
    if ratio is None:
        return NOTHING
    return f"{ratio:.2f}" + ("" if other is None else f"; channels_last {other:.2f}")


def _gates(results: Results) -> str:
    parts = []
    for case in ("coord_attention", "global_context"):
        time = _text(_ratios(results, case, "visgraft", "timm"))
        memory = _text(_memories(results, case, "visgraft", "timm"))
        if time != NOTHING:
            parts.append(f"{case}: {time}, memory {memory}")
    return "; ".join(parts) or NOTHING


def _network(name: str, base: str, calls: Sequence[tuple[int, str]]) -> Callable[[Results], str]:
    def read(results: Results) -> str:
        found = [
            results.ratio(results.find(name, (b, 3, 224, 224), step), name, base)
            for b, step in calls
        ]
        return _text(found)

    return read


def _channels_last(results: Results) -> str:
    parts = []
    for case in ("cot", "coord_attention", "conv3x3"):
        at, name = ("cot", case) if case == "conv3x3" else (case, "visgraft")
        records = [results.find(at, shape, BOTH, channels_last=True) for shape in MAPS]
        text = _text([results.ratio(record, name, f"{name}, contiguous") for record in records])
        parts += [f"{case} {text}"] * (text != NOTHING)
    return "; ".join(parts) or NOTHING


def _on_gpu(case: str, name: str) -> Callable[[Results], str]:
    def read(results: Results) -> str:
        parts = []
        for record in results.records.values():
            if record["case"] == case and record["device"].startswith("cuda"):
                reached = record["reached"].get(name)
                if reached is not None:
                    shape = "x".join(map(str, record["shape"]))
                    parts.append(f"{shape} {record['step']}: {reached['of_copy']:.2f}")
        return "; ".join(parts) or "not measured: no GPU"

    return read


TARGETS = (
    Target(
        "CoT aggregation, native CPU form, against unfolding",
        ">= 12 times faster, 9 times less memory",
        ">= 24 times faster",
        _times("local_aggregation", "native", "circulating"),
        "on 7 x 7, where all of it takes less than half a millisecond, a quarter is the call "
        "itself: Python, autograd and new tensors; what bounds the larger maps was not isolated",
    ),
    Target(
        "CoT aggregation without compiled code",
        ">= 2 times faster on maps >= 14x14, >= 4 times less memory",
        "no slower than unfolding anywhere",
        _times("local_aggregation", "shifted", "circulating"),
    ),
    Target(
        "CoT block against conv3x3",
        "1.44 / 0.86 / 0.80 / 0.82",
        "1.1 / 0.75 / 0.75 / 0.75; memory <= 2.5 times the convolution's at 56x56",
        _against_convolution("cot", memory="ratio"),
        "the aggregation is a small part of the time: most is in the 1 x 1 convolutions and the "
        "grouped one, then in the normalisation; the inputs of both are kept for the backward "
        "pass, which is the memory",
    ),
    Target(
        "`cot_attention` against the copy",
        "1.6 times faster",
        "2 times",
        _times("cot_attention", "visgraft", "circulating"),
        "the copy and this form share the grouped convolution and two of the three 1 x 1 "
        "convolutions, which take most of what is left",
    ),
    Target(
        "ACmix block against conv3x3",
        "3.3 / 1.2 / 0.75 / 1.1",
        "2.0 / 0.9 / 0.7 / 0.9; memory <= 80 MiB at 56x56",
        _against_convolution("acmix", memory="MiB"),
        "on maps larger than 7 x 7 the convolution with as many groups as a head has channels, of "
        "few channels each, costs more than the attention, and the three projections and their "
        "order in memory, which the two ways of the block want differently, cost as much again",
    ),
    Target(
        "ACmix's attention without compiled code, against unfolding: tiles",
        "4.7 times faster",
        "-",
        _times("window_attention", "tiles", "circulating"),
        "a tile reads three to four times the keys of its windows, and on 56 x 56 the gathering "
        "of many small tiles of few channels weighs most",
    ),
    Target(
        "ACmix's attention without compiled code, small maps: dense",
        "-",
        "12 times faster",
        _times("window_attention", "dense", "circulating"),
        "on 14 x 14 each query multiplies 196 keys to use 49; there the native form, which does "
        "not, is the one that is chosen",
    ),
    Target(
        "BoT's attention against the plain form",
        "never slower at <= 14x14; from 40x40 on 3.5 times less memory at <= 2.2 times the time",
        "from 40x40 on memory linear in positions and no slower",
        _attention,
    ),
    Target(
        "`selective_kernel` at 14x14 against conv3x3",
        "0.27",
        "0.22",
        _selective_kernel,
        "two grouped convolutions take most of it; channels_last is faster, as measured below",
    ),
    Target(
        "gates against timm's",
        "<= 1.0, less memory",
        "<= 0.75",
        _gates,
        "sums and products over the map are one pass forward and one backward; what is left are "
        "the small convolutions and the normalisation of the two strips",
    ),
    Target(
        "`deform_conv` on a CPU against conv3x3", "-", "<= 3", _against_convolution("deform_conv")
    ),
    Target(
        "CoTNet-50 against resnet50: training step, inference of 1 and of 8",
        "1.00 / 0.98 / 0.97",
        "0.90 / 0.90 / 0.90",
        _network("cotnet50", "resnet50", ((8, BOTH), (1, FORWARD), (8, FORWARD))),
        "three quarters of inference are convolutions, the aggregation is 3 %; the 1 x 1 "
        "convolutions around it run at some 60 % of a matrix product's speed in every form that "
        "PyTorch has for them; `fused` shows both networks with their normalisation folded",
    ),
    Target(
        "ResNet-ACmix-50 against resnet50: training step of 2",
        "1.57",
        "1.2",
        _network("resnet50_acmix", "resnet50", ((2, BOTH),)),
        "as the block, on the large maps of the first stages",
    ),
    Target(
        "MobileNetV2-CA against MobileNetV2: inference of 1",
        "1.56",
        "1.2",
        _network("mobilenetv2_ca_100", "mobilenetv2_100", ((1, FORWARD),)),
        "each of the gates is some ten small operators on a small map; `fused` shows both networks "
        "with their normalisation folded",
    ),
    Target(
        "channels_last against the usual layout",
        "<= 1",
        "as conv3x3",
        _channels_last,
        "on the large maps PyTorch's GroupNorm is slower in this layout (twice on 40 x 40), our "
        "batch normalisation reads the map twice from the outer cache, and the aggregation turns "
        "the weights of each position before it uses them",
    ),
    Target(
        "GPU: CoT aggregation, share of the copy limit",
        "0.60 forward, 0.50 both",
        "0.80 / 0.65",
        _on_gpu("local_aggregation", "triton"),
    ),
    Target(
        "GPU: ACmix's attention, share of the copy limit",
        "5 times its compiled unfolded form",
        "half of the limit",
        _on_gpu("window_attention", "triton"),
    ),
)
