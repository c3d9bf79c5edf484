"""Tries every block in ultralytics' trainer: ``python -m tests.tasks.yolo.table`` writes it down.

It grafts each block into two networks, and takes each ready network; trains one epoch, validates on
rectangles, exports, and compares. The tables go to docs/yolo.md, between their marks: ``networks``
and ``blocks``, which can be named to write one of them. Both take seven minutes of one core.
"""

import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.tasks.yolo.exercise import BLOCKS, NETWORKS, PLACES, READY, Exercise
from visgraft.blocks import block_info
from visgraft.inspect import cost
from visgraft.tasks import yolo

__all__ = ["BEGIN", "END", "PAGE", "between", "figures", "sized"]

PAGE = Path(__file__).parents[3] / "docs" / "yolo.md"
BEGIN = "<!-- {}: begin; written by python -m tests.tasks.yolo.table -->\n"
END = "<!-- {}: end -->\n"
WHAT = {
    "acmix": "`ACmix` behind the last stage, before the pooling",
    "bot": "`BottleneckAttention` in the bottlenecks of the last stage",
    "ca": "`CoordAttention` before the head on the coarsest map",
    "cot": "`CoT` in the bottlenecks of the last stage",
    "dcn": "`DeformConv` in the bottlenecks of the last three stages",
    "gc": "`GlobalContext` before the head on the coarsest map",
    "sk": "`SelectiveKernel` before the head on the coarsest map",
}
SPD = {
    "yolov5": "`SpaceToDepth` behind unstrided convolutions: YOLOv5-SPD",
    "yolov8": "`SPDConv` for all strided convolutions but the first",
}


def between(name: str, text: str) -> str:
    """Returns what stands between the marks of a table."""
    return text.partition(BEGIN.format(name))[2].partition(END.format(name))[0]


def sized(stem: str, size: str) -> str:
    """Returns a network's name with the letter of its size."""
    return re.sub(r"(\d)", rf"\1{size}", stem, count=1)


def exercised(network: str, block: str | None) -> Exercise:
    """Trains, validates and runs a network; raises where anything goes wrong."""
    with tempfile.TemporaryDirectory() as folder:
        exercise = Exercise(network, block, Path(folder))
        assert exercise.train() > 0
        assert 0 <= exercise.validate(rect=True, imgsz=160, batch=4) <= 100
        assert {shape for shape, _ in exercise.seen} >= {(128, 192), (192, 128)}
        exercise.run_on_odd_sizes()
        exercise.half = exercise.in_half()
        exercise.onnx = exercise.export()
    assert exercise.onnx < 1e-3, (network, block, exercise.onnx)
    assert exercise.half < 1e-2, (network, block, exercise.half)
    sys.stderr.write(
        f"{network} {block}: ONNX {exercise.onnx:.0e}, float16 {exercise.half:.0e}, "
        f"{exercise.seconds:.1f} s\n"
    )
    return exercise


def figures(name: str) -> tuple[str, str]:
    """Returns parameters and floating-point operations, at an image of 640."""
    from ultralytics.nn.tasks import DetectionModel

    file = yolo.network_file(name) if "_" in name else f"{name}.yaml"
    counted = cost(DetectionModel(file, verbose=False), (1, 3, 640, 640))
    return f"{counted.params:,}", f"{2 * counted.macs / 1e9:.1f}"


def kept(name: str) -> str:
    """Returns how many tensors of the network without the block fit, by name and shape."""
    from ultralytics.nn import tasks

    built = [f"{name.partition('_')[0]}.yaml", yolo.network_file(name)]
    plain, own = (tasks.DetectionModel(file, verbose=False).state_dict() for file in built)
    return f"{len(tasks.intersect_dicts(plain, own))} of {len(plain)}"


def networks_table() -> list[str]:
    """Returns the rows of the ready networks, and of the networks they are made from."""
    rows = [
        "| network | n | s | m | l | fit | what |",
        "|---|---|---|---|---|---:|---|",
    ]
    stems = [*NETWORKS_PLAIN, *(name[:6] + name[7:] for name in READY)]
    for stem in sorted(stems):
        base, _, variant = stem.partition("_")
        what = SPD[base] if variant == "spd" else WHAT.get(variant, "as ultralytics has it")
        cells = [" / ".join(figures(sized(stem, size))) for size in "nsml"]
        fit = kept(sized(stem, "n")) if variant else ""
        rows.append(f"| `{stem}` | {' | '.join(cells)} | {fit} | {what} |")
    return rows


def blocks_table() -> list[str]:
    """Returns the rows of the blocks grafted, and of the ready networks."""
    rows = [
        "| block or network | where | ONNX, yolov5n | yolov8n | float16, yolov5n | yolov8n |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for block in BLOCKS:
        done = [exercised(network, block) for network in NETWORKS]
        where = ", ".join(f"`{p}`" for p in PLACES[block_info(block).role])
        rows.append(f"| `{block}` | {where} | {compared(done)} |")
    for variant in sorted({name.partition("_")[2] for name in READY}):
        done = [exercised(f"{network}_{variant}", None) for network in NETWORKS]
        rows.append(f"| `yolov5n_{variant}`, `yolov8n_{variant}` | | {compared(done)} |")
    return rows


def compared(done: list[Exercise]) -> str:
    """Returns the cells of the differences."""
    cells = [f"{e.onnx:.0e}" for e in done] + [f"{e.half:.0e}" for e in done]
    return " | ".join(cells)


def write(name: str, rows: Callable[[], list[str]]) -> None:
    """Puts a table between its marks."""
    text = PAGE.read_text()
    begin, end = BEGIN.format(name), END.format(name)
    if begin not in text or end not in text:
        raise SystemExit(f"{PAGE} has no marks of the table {name}")
    made = "\n".join(rows()) + "\n"
    text = PAGE.read_text()
    head, tail = text.partition(begin)[0], text.partition(end)[2]
    PAGE.write_text(f"{head}{begin}{made}{end}{tail}")


NETWORKS_PLAIN = ("yolov5", "yolov8")

if __name__ == "__main__":
    for table in sys.argv[1:] or ("networks", "blocks"):
        write(table, {"networks": networks_table, "blocks": blocks_table}[table])
