"""`visgraft eval`: the accuracy of a checkpoint, or the average precision of a detector."""

from argparse import Namespace, _SubParsersAction

from visgraft.cli._table import format_table

__all__ = ["add_command"]

_GIVEN = (
    "data",
    "images",
    "model",
    "image_size",
    "batch_size",
    "on_bad_image",
    "device",
    "workers",
)


def add_command(commands: _SubParsersAction) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "eval",
        help="evaluate a checkpoint",
        description="Rebuilds network, grafts and weights from a checkpoint of `visgraft train` "
        "and evaluates it on its own validation images or on others. For weights of others, say "
        "what network they are of (--model) and what to measure on (--data). Of other data the "
        "validation part is measured on, or all images where there are no parts.",
        epilog="example: visgraft eval runs/photos/best.ckpt --data other_photos/",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a file that visgraft train wrote")
    parser.add_argument(
        "--data", help="other data: what the recipe's field data takes (default: its own)"
    )
    parser.add_argument("--images", help="for detection: folder of the pictures of a COCO json")
    parser.add_argument("--model", help="for weights of others: a name in timm's registry")
    parser.add_argument("--image-size", type=int, help="in pixels (default: that of training)")
    parser.add_argument("--batch-size", type=int, help="images at a time (default: the recipe's)")
    parser.add_argument("--workers", type=int, default=0, help="processes that load (default: 0)")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto"
    )
    parser.add_argument(
        "--on-bad-image",
        choices=("error", "skip"),
        help="what to do about unreadable files (default: the recipe's)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=_run, parser=parser)


def _run(args: Namespace) -> None:
    from visgraft.tasks import evaluate

    given = {name: getattr(args, name) for name in _GIVEN if getattr(args, name) is not None}
    told: list[str] = []
    metrics = evaluate(args.checkpoint, progress=not args.quiet, tell=told.append, **given)
    print(format_table(("metric", "value"), [(k, f"{v:.4g}") for k, v in metrics.items()]))
    print(f"measured on {told[0]}")
