"""A picture of a document: for each case, the time of each form against the baseline."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visgraft.inspect.bench.cases import STEPS
from visgraft.inspect.bench.document import check_target

__all__ = ["check_picture", "draw_document"]

_COLOURS = {
    "visgraft": "#2166ac",
    "circulating": "#d6604d",
    "torchvision": "#d6604d",
    "timm": "#8c6bb1",
    "conv3x3": "#969696",
}
_STYLE: Any = {"svg.hashsalt": "visgraft", "svg.fonttype": "none", "font.size": 7}
_OTHERS = ("#4393c3", "#74a9cf", "#a6bddb", "#1b7837", "#7fbf7b", "#c2a5cf")


def check_picture(file: Path) -> None:
    """Makes sure that a picture can be drawn into a file.

    Raises:
        ValueError: Its ending is of no picture, or the file cannot be written.
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    endings = FigureCanvasBase.get_supported_filetypes()
    if file.suffix.lower().removeprefix(".") not in endings:
        raise ValueError(
            f"bench: {file} is not the name of a picture; end it in one of "
            f"{', '.join(f'.{ending}' for ending in sorted(endings))}"
        )
    check_target(file)


def draw_document(document: dict[str, Any], file: Path, *, steps: Sequence[str] = STEPS) -> None:
    """Draws the first run as bars, one panel for each case.

    Args:
        document: As of ``measure_cases``.
        file: Its ending chooses the format, such as ``.svg`` or ``.png``.
        steps: Those that are drawn.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    run = document["runs"][0]
    records = [record for record in run["records"] if record["step"] in steps]
    columns = min(4, len(records))
    rows = -(-len(records) // columns)
    most = max(len(record["timings"]) for record in records)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4 * columns, rows * (0.7 + 0.2 * most)), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False)
        for panel in panels.flat[len(records) :]:
            panel.set_axis_off()
        for panel, record in zip(panels.flat, records, strict=False):
            _draw_record(panel, record)
        where = document["machine"].get("gpu") or document["machine"]["cpu"]
        figure.suptitle(
            f"{where}, {run['threads']} threads, torch {document['machine']['torch']}, allocator "
            f"{run['allocator']}, {document['date'][:10]}: time as a multiple of the first bar"
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def _draw_record(panel: Any, record: dict[str, Any]) -> None:
    timings = dict(record["timings"])
    names = [record["baseline"], *(n for n in timings if n != record["baseline"])]
    spare = iter(_OTHERS * 4)
    colours = [_COLOURS.get(name) or next(spare) for name in names]
    ratios = [timings[name]["ratio"] for name in names]
    panel.barh(names, ratios, color=colours)
    panel.invert_yaxis()
    panel.axvline(1, color="#969696", linewidth=0.8)
    for place, name in enumerate(names):
        peak = timings[name]["peak_memory"]
        memory = "" if peak is None else f", {peak / 2**20:.0f} MiB"
        text = f" {1e3 * timings[name]['seconds']:.2f} ms{memory}"
        panel.annotate(text, (ratios[place], place), va="center", fontsize=6)
    panel.set_xlim(0, 1.5 * max(ratios))
    shape = " x ".join(map(str, record["shape"]))
    panel.set_title(f"{record['case']}\n{shape}, {record['step']}", fontsize=7)
