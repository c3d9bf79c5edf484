"""Writes docs/performance.md and its pictures from the results of `visgraft bench`.

    visgraft bench ops --allocator both --out benchmarks/results/ops-cpu.json
    python benchmarks/write_performance.py

Every figure of the page is read from the JSON files in benchmarks/results; none is typed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.performance_targets import TARGETS, Results

from visgraft.inspect.bench import draw_document, read_document

__all__ = ["main", "page"]

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


def page(documents: dict[str, dict[str, Any]]) -> str:
    """Returns the text, from the name of each results file to what it holds."""
    parts = [INTRODUCTION, "\n## Machines\n\n", _machines(documents), TARGETS_TEXT, "\n"]
    results = Results(documents.values())
    rows = [(t.what, t.first, t.goal, t.reached(results)) for t in TARGETS]
    parts.append(_table(("what", "first", "goal", "reached"), rows))
    for name, document in documents.items():
        parts.append(f"\n## {name}\n")
        parts.append(f"\n![Times of the forms](performance-{name}.svg)\n")
        for run in document["runs"]:
            parts.append(f"\n### {name}, allocator {run['allocator']}\n\n")
            parts.append(_table(_HEADER, [row for r in run["records"] for row in _rows(r)]))
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
            layout = ", channels_last" if record["channels_last"] else ""
            rows.append(
                (
                    name,
                    document["date"],
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
    return _table((*header, "copy, GB/s", "product, GFLOP/s"), rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Writes the page and the pictures."""
    files = sorted(RESULTS.glob("*.json"))
    if not files:
        raise SystemExit(f"no results in {RESULTS}; `make bench` makes them")
    documents = {file.stem: read_document(file) for file in files}
    for name, document in documents.items():
        target = PAGE.with_name(f"performance-{name}.svg")
        draw_document(document, target, steps=("forward and backward",))
        print(target)
    PAGE.write_text(page(documents), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
