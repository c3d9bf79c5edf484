"""`visgraft convert`: the authors' weights of a network, under the names of ours."""

from argparse import Namespace, _SubParsersAction
from pathlib import Path

__all__ = ["add_command"]

_SUFFIX = ".safetensors"  # timm chooses how to read a file by it


def add_command(commands: _SubParsersAction) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "convert",
        help="translate the authors' weights of a network",
        description="Translates a checkpoint of a paper's authors to the names of our network, as "
        "safetensors. Nothing in the file is executed, and nothing is written unless every tensor "
        "fits.",
        epilog="example: visgraft convert cotnet50.pth.tar --model cotnet50 -o cotnet50.safetensors"
        "\n`visgraft models NAME` says where the authors' weights are.",
    )
    parser.add_argument("file", metavar="FILE", help="the authors' checkpoint")
    parser.add_argument("--model", required=True, metavar="NAME", help="one of `visgraft models`")
    parser.add_argument(
        "-o", "--output", required=True, metavar="OUT", help=f"what to write, ending in {_SUFFIX}"
    )
    parser.add_argument("--ema", action="store_true", help="prefer the averaged weights in it")
    parser.add_argument(
        "--skip-head", action="store_true", help="leave out a classifier that does not fit"
    )
    parser.add_argument("--num-classes", type=int, help="of the checkpoint (default: 1000)")
    parser.add_argument(
        "--image-size", type=int, help="in pixels, for networks with a table of positions"
    )
    parser.add_argument("--force", action="store_true", help="overwrite the output file")
    parser.set_defaults(run=_run, parser=parser)


def _run(args: Namespace) -> None:
    from safetensors.torch import save

    from visgraft.models import convert_published
    from visgraft.tasks.files import write_atomically

    output = Path(args.output)
    _check_output(output, Path(args.file), args.force)
    options = {"num_classes": args.num_classes, "img_size": args.image_size}
    given = {name: value for name, value in options.items() if value is not None}
    try:
        tensors, report = convert_published(
            args.file, args.model, ema=args.ema, skip_head=args.skip_head, **given
        )
    except ValueError as error:
        hint = "--skip-head leaves out"
        raise ValueError(str(error).replace("skip_head=True leaves out", hint)) from error
    about = {"format": "pt", "architecture": args.model, "translated_from": report.layout}
    write_atomically(output, save(tensors, metadata=about))
    print(f"{args.file}: {report}")
    print(f"{output}: {len(tensors)} tensors, {output.stat().st_size / 1e6:.1f} MB")
    given |= {"num_classes": 0} if report.skipped else {}
    arguments = "".join(f", {name}={value}" for name, value in given.items())
    print(f'timm.create_model("{args.model}"{arguments}, checkpoint_path="{output}") loads it.')


def _check_output(output: Path, source: Path, force: bool) -> None:
    if output.suffix != _SUFFIX:
        raise ValueError(f"convert: the output must end in {_SUFFIX}, got {str(output)!r}")
    if not output.parent.is_dir():
        raise ValueError(f"convert: the folder {output.parent} does not exist; make it first")
    if output.exists() and source.exists() and output.samefile(source):
        raise ValueError(f"convert: {output} is the input; choose another output")
    if output.exists() and not force:
        raise ValueError(f"convert: {output} exists; choose another output, or add --force")
