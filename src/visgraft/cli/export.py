"""`visgraft export`: a trained network as a file for other programs, proved to compute the same."""

from argparse import Namespace, _SubParsersAction

__all__ = ["add_command"]


def add_command(commands: _SubParsersAction) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "export",
        help="write a trained classifier as ONNX or as a PyTorch program",
        description="Writes the classifier of a checkpoint of `visgraft train` as .onnx (needs the "
        "extra visgraft[export]) or .pt2 (torch.export). The file is run again and compared with "
        "the network, at other image sizes too, before it is put in place. It carries the names of "
        "the classes and how a picture becomes its input; its output is logits.",
        epilog="example: visgraft export runs/photos/best.ckpt photos.onnx",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a file that visgraft train wrote")
    parser.add_argument("output", metavar="OUT", help="what to write, ending in .onnx or .pt2")
    parser.add_argument(
        "--image-size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="that is recorded, in pixels (default: that of the training)",
    )
    parser.add_argument(
        "--free",
        choices=("all", "batch", "none"),
        default="all",
        help="what may change from call to call; all: batch, height and width (default: all)",
    )
    parser.add_argument(
        "--no-fuse", action="store_true", help="leave batch normalisation as layers of its own"
    )
    parser.add_argument("--half", action="store_true", help="weights, input and output in float16")
    parser.set_defaults(run=_run, parser=parser)


def _run(args: Namespace) -> None:
    from visgraft.tasks.exporting import export_checkpoint

    report = export_checkpoint(
        args.checkpoint,
        args.output,
        image_size=tuple(args.image_size) if args.image_size else None,
        free=args.free,
        fuse=not args.no_fuse,
        half=args.half,
    )
    print(report)
