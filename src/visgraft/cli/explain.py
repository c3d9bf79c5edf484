"""`visgraft explain`: where trained classifiers look, drawn into pictures."""

from argparse import Namespace, _SubParsersAction

from visgraft.cli._table import format_table

__all__ = ["add_command"]

_MOST_ROWS = 50


def add_command(commands: _SubParsersAction) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "explain",
        help="draw where classifiers see a class in pictures",
        description="Draws class-activation maps (Grad-CAM on the last feature map) of checkpoints "
        "of `visgraft train` into pictures; several networks, such as one with a block and one "
        "without, stand side by side and are asked for the same class. With --attention, what "
        "the blocks inside weigh the places of their maps with follows.",
        epilog="example: visgraft explain runs/plain/best.ckpt holiday/ "
        "--against runs/photos/best.ckpt --pictures looks",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a file that visgraft train wrote")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="a file, or a folder of files")
    parser.add_argument("--pictures", metavar="FOLDER", required=True, help="where they are drawn")
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="CHECKPOINT",
        help="another network with the same classes; repeatable",
    )
    parser.add_argument(
        "--label",
        metavar="CLASS",
        help="that is asked for (default: what the first network thinks likeliest)",
    )
    parser.add_argument(
        "--attention",
        action="store_true",
        help="draw the attention of the blocks that weigh places, too: global_context, "
        "coord_attention, cot_attention, bottleneck_attention, mhsa",
    )
    parser.add_argument(
        "--side", type=int, default=224, help="pixels of a panel's shorter side (default: 224)"
    )
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
    from visgraft.tasks.explaining import explain

    results = explain(
        [args.checkpoint, *args.against],
        args.images,
        args.pictures,
        label=args.label,
        attention=args.attention,
        side=args.side,
        on_bad_image=args.on_bad_image,
        device=args.device,
        progress=not args.quiet,
    )
    if not args.quiet:
        rows = [
            (str(one.path), one.asked, "; ".join(f"{name} {100 * p:.1f}" for name, p in one.says))
            for one in results[:_MOST_ROWS]
        ]
        print(format_table(("image", "asked for", "each network says, %"), rows))
        if more := len(results) - len(rows):
            print(f"... and {more} more images")
    one = results[0]
    checkpoints = [args.checkpoint, *args.against]
    for checkpoint, grid, blocks in zip(checkpoints, one.grids, one.blocks, strict=True):
        if grid == (1, 1):
            print(f"{checkpoint} sees its last map as one place: its panel glows all over")
        if args.attention and not blocks:
            print(f"{checkpoint} has no block that weighs places: no attention is drawn")
    print(f"written: {args.pictures}")
