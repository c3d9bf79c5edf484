"""`visgraft predict`: what a trained network says of pictures."""

from argparse import Namespace, _SubParsersAction
from collections import Counter
from collections.abc import Sequence
from typing import Any

from visgraft.cli._table import format_table

__all__ = ["add_command"]

_GIVEN = ("top", "output", "pictures", "score", "batch_size", "workers", "device", "on_bad_image")
_MOST_ROWS = 50


def add_command(commands: _SubParsersAction) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "predict",
        help="name the classes of pictures, or find the objects in them",
        description="Applies the network of a checkpoint of `visgraft train` to pictures: a "
        "classifier names their classes, a detector finds objects. Folders are read with all that "
        "is in them.",
        epilog="example: visgraft predict runs/photos/best.ckpt holiday/ --output holiday.csv",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a file that visgraft train wrote")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="a file, or a folder of files")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="write .json or .csv; of a detector COCO results (.json), numbered by the files' "
        "names if all are numbers, else from 1",
    )
    parser.add_argument("--top", type=int, help="classifiers: classes that are named (default: 5)")
    parser.add_argument(
        "--pictures", metavar="FOLDER", help="detectors: write pictures with the objects"
    )
    parser.add_argument(
        "--score", type=float, help="detectors: lowest score that is shown (default: 0.5)"
    )
    parser.add_argument(
        "--batch-size", type=int, help="images at a time (default: the recipe's; for detectors 1)"
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that load (default: 0)")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto"
    )
    parser.add_argument(
        "--on-bad-image",
        choices=("error", "skip"),
        default="error",
        help="what to do about unreadable files (default: error, which names all of them)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar and no table")
    parser.set_defaults(run=_run, parser=parser)


def _run(args: Namespace) -> None:
    from visgraft.tasks.prediction import PredictedClasses, predict

    given = {name: getattr(args, name) for name in _GIVEN if getattr(args, name) is not None}
    results = predict(args.checkpoint, args.images, progress=not args.quiet, **given)
    if not args.quiet:
        shown: list[Any] = list(results[:_MOST_ROWS])
        if isinstance(shown[0], PredictedClasses):
            rows = [_class_row(one) for one in shown]
            print(format_table(("image", "class", "%", "then"), rows))
        else:
            score = 0.5 if args.score is None else args.score
            rows = [_object_row(one, score) for one in shown]
            print(format_table(("image", "objects", f"found with a score from {score:g}"), rows))
        if more := len(results) - len(shown):
            print(f"... and {more} more images" + ("" if args.output else " (--output writes all)"))
    for place in (args.output, args.pictures):
        if place:
            print(f"written: {place}")


def _class_row(one: Any) -> tuple[str, ...]:
    percent = [f"{100 * value:.1f}" for value in one.probabilities]
    then = ", ".join(f"{n} {p}" for n, p in zip(one.classes[1:], percent[1:], strict=True))
    return str(one.path), one.classes[0], percent[0], then


def _object_row(one: Any, score: float) -> tuple[str, ...]:
    names = [n for n, s in zip(one.classes, one.objects.scores, strict=True) if s >= score]
    return str(one.path), str(len(names)), _count(names)


def _count(names: Sequence[str]) -> str:
    """Returns how often each name is there, in order of appearance."""
    return ", ".join(f"{name} {count}" for name, count in Counter(names).items())
