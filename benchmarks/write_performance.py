"""Writes docs/performance.md and its pictures from the results of `visgraft bench`.

    visgraft bench ops --allocator both --out benchmarks/results/ops-cpu.json
    python benchmarks/write_performance.py

Every figure of the page is read from the JSON files in benchmarks/results; none is typed.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.performance_tables import (
    compiled_table,
    is_plain,
    network_table,
    profile_table,
    table,
    variant_table,
)
from benchmarks.performance_targets import TARGETS, Results
from benchmarks.profile_targets import FILE as PROFILE

from visgraft.inspect.bench import draw_document, read_document

__all__ = ["main", "page", "read_profile"]

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "performance.md"
INTRODUCTION = """\
# Performance

Written by `python -m benchmarks.write_performance` from the files in `benchmarks/results`, which
`make bench` makes; no figure here is typed.

Forms take turns in one process; times are medians over the rounds, ratios are taken within a round.
On a CPU the time is that of the process's threads, which other work on the machine disturbs little.
Memory is the peak of what PyTorch's allocator hands out above the level at entry, in one more call:
scratch memory that libraries take from the system themselves is not in it. Forms that compute one
function are compared in output and gradients before anything is timed. *circulating* is the form
that articles print, written anew from its formulas; *conv3x3* is `nn.Conv2d` of as many channels,
without bias. *of copy* is the share of the speed of a plain copy, for the bytes that have to be
moved at least (up to 16 MiB against a copy within the cache, beyond that through main memory);
*of product* the share of the speed of a large matrix product, for the multiplications that the form
does.
"""
TARGETS_TEXT = """
## Targets

Forward and backward unless said otherwise, float32, allocator tuned. Four numbers are the maps
8 x 64 x 56 x 56, 8 x 256 x 14 x 14, 4 x 512 x 7 x 7 and 2 x 256 x 40 x 40.
"""


NETWORKS_TEXT = """
## Networks

At 224 x 224 pixels, float32, weights drawn at random. *time* is that of the network in the first
row of the same step; *fused* has its normalisation folded into its convolutions by `vg.fuse`;
*unfolded* is the same network with the same weights, whose operations are those that circulate.
*MiB* is the peak above the level before the step: activations, gradients and intermediate results,
not the weights.

"""
WAYS_TEXT = """
## Memory layouts, bfloat16 and the compiler

Each form takes turns with itself as it was before: *to itself before* is its time in the layout or
dtype of the table to its time with contiguous float32 maps. The baseline is conv3x3 for blocks and
resnet50 for networks.
"""
COMPILED_TEXT = """
Times to that of the block as it is, uncompiled; *graph breaks* counts how often the compiler leaves
its graph for Python. What the compiler takes for itself is not in the times.

"""
REASONS_TEXT = """
### What stands in the way

"""
PROFILE_TEXT = """
Where the time of a training step of these blocks goes, by PyTorch's profiler, one thread:

"""


def page(documents: dict[str, dict[str, Any]], profile: dict[str, Any] | None) -> str:
    """Returns the text.

    Args:
        documents: Name of each results file to what it holds.
        profile: As `benchmarks.profile_targets` writes it.
    """
    parts = [INTRODUCTION, "\n## Machines\n\n", _machines(documents), TARGETS_TEXT, "\n"]
    results = Results(documents.values())
    rows = [(t.what, t.first, t.goal, t.reached(results)) for t in TARGETS]
    parts.append(table(("what", "first", "goal", "reached"), rows))
    parts += [REASONS_TEXT, *(f"- {t.what}: {t.why}\n" for t in TARGETS if t.why)]
    if profile is not None:
        parts += [PROFILE_TEXT, profile_table(profile)]
    plain = {name: each for name, each in documents.items() if is_plain(each)}
    others = {name: each for name, each in documents.items() if name not in plain}
    parts += [NETWORKS_TEXT, network_table(plain.values())]
    parts += [WAYS_TEXT] * bool(others)
    for name, document in others.items():
        compiled = "graph_breaks" in document["runs"][0]["records"][0]
        parts.append(f"\n### {name}\n")
        parts += (
            [COMPILED_TEXT, compiled_table(document)]
            if compiled
            else ["\n", variant_table(document)]
        )
    for name, document in plain.items():
        parts.append(f"\n## {name}\n")
        parts.append(f"\n![Times of the forms](performance-{name}.svg)\n")
        for run in document["runs"]:
            parts.append(f"\n### {name}, allocator {run['allocator']}\n\n")
            parts.append(table(_HEADER, [row for r in run["records"] for row in _rows(r)]))
            refusals = {
                f"{record['case']}, {form}: {why}"
                for record in run["records"]
                for form, why in record["refused"].items()
            }
            parts += [f"\nNot run: {'; '.join(sorted(refusals))}.\n"] * bool(refusals)
    return "".join(parts)


_HEADER = ("case", "map", "step", "form", "ms", "ratio", "MiB", "of copy", "of product")


def _rows(record: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for name, timing in record["timings"].items():
        reached = record["reached"][name]
        product = reached["of_multiply"]
        rows.append(
            (
                record["case"],
                " x ".join(map(str, record["shape"])),
                record["step"],
                name,
                f"{1e3 * timing['seconds']:.2f}",
                f"{timing['ratio']:.2f}",
                f"{timing['peak_memory'] / 2**20:.1f}",
                f"{reached['of_copy']:.2f}",
                "-" if product is None else f"{product:.2f}",
            )
        )
    return rows


def _machines(documents: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, document in documents.items():
        machine = document["machine"]
        for run in document["runs"]:
            limits, record = run["limits"], run["records"][0]
            layout = ", channels_last" * record["channels_last"]
            layout += ", compiled" * ("graph_breaks" in record)
            rows.append(
                (
                    name,
                    _dates(document, run),
                    machine.get("gpu") or f"{machine['cpu']}, {machine['cpu_capability']}",
                    f"torch {machine['torch']}, visgraft {machine['visgraft']}",
                    f"{record['dtype']}{layout}",
                    f"{run['threads']} of {machine['cores']}",
                    run["allocator"],
                    f"{limits['copy_small'] / 1e9:.0f} and {limits['copy_large'] / 1e9:.0f}",
                    f"{limits['multiply'] / 1e9:.0f}",
                )
            )
    header = ("results", "date", "machine", "versions", "dtype", "threads", "allocator")
    return table((*header, "copy, GB/s", "product, GFLOP/s"), rows)


def _dates(document: dict[str, Any], run: dict[str, Any]) -> str:
    later = sorted({record["date"] for record in run["records"] if "date" in record})
    again = len([record for record in run["records"] if "date" in record])
    return document["date"] + (
        f"; {again} of {len(run['records'])} later, last {later[-1]}" if later else ""
    )


def read_profile() -> dict[str, Any] | None:
    """Returns the profile; None where there is no file."""
    return json.loads(PROFILE.read_text(encoding="utf-8")) if PROFILE.is_file() else None


def main() -> None:
    """Writes the page and the pictures."""
    files = sorted(RESULTS.glob("*.json"))
    if not files:
        raise SystemExit(f"no results in {RESULTS}; `make bench` makes them")
    documents = {file.stem: read_document(file) for file in files}
    for name, document in documents.items():
        if not is_plain(document):
            continue
        target = PAGE.with_name(f"performance-{name}.svg")
        draw_document(document, target, steps=("forward and backward",))
        print(target)
    PAGE.write_text(page(documents, read_profile()), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
