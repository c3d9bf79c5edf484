"""`visgraft sites`: where in a model a block can be put."""

from argparse import Namespace, _SubParsersAction

from visgraft.cli._table import format_table

__all__ = ["add_command"]


def add_command(commands: _SubParsersAction) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "sites",
        help="list the places of a model that can take a block",
        description="Lists the places of a network where `graft` can put a block. The path, the "
        "kind, or STAGE/KIND (stage4/conv3x3) is what `at` takes.",
        epilog="example: visgraft sites resnet50 --kind conv3x3",
    )
    parser.add_argument("model", metavar="MODEL", help="a name in timm's registry, ours included")
    parser.add_argument("--kind", help="only sites of this kind: conv3x3, block_end, ...")
    parser.add_argument("--image-size", type=int, help="in pixels (default: the model's own)")
    parser.add_argument("--in-chans", type=int, default=3, help="image channels (default: 3)")
    parser.set_defaults(run=_run, parser=parser)


def _run(args: Namespace) -> None:
    import torch

    from visgraft.models import create_model
    from visgraft.surgery import find_sites

    with torch.device("meta"):
        model = create_model(args.model, in_chans=args.in_chans)
    size = args.image_size
    sites = find_sites(model, None if size is None else (1, args.in_chans, size, size))
    kinds = sorted({s.kind for s in sites})
    if args.kind is not None and args.kind not in kinds:
        raise ValueError(
            f"{args.model} has no sites of kind {args.kind!r}; it has {', '.join(kinds)}"
        )
    rows = [
        (
            s.path,
            s.kind,
            s.stage,
            f"{s.in_channels} -> {s.out_channels}",
            "-" if s.kernel_size is None else _pair(s.kernel_size),
            "-" if s.stride is None else _pair(s.stride),
            _pair(s.feature_size),
        )
        for s in sites
        if args.kind in (None, s.kind)
    ]
    print(format_table(("path", "kind", "stage", "channels", "kernel", "stride", "map"), rows))


def _pair(value: int | tuple[int, int]) -> str:
    return f"{value}" if isinstance(value, int) else f"{value[0]} x {value[1]}"
