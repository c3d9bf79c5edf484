"""`visgraft blocks`: the catalogue, or one block in full."""

import inspect
from argparse import Namespace, _SubParsersAction

from visgraft.cli._table import format_count, format_table

__all__ = ["add_command"]


def add_command(commands: _SubParsersAction) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "blocks",
        help="list the blocks, or show one in full",
        description="Lists the catalogue with what each block costs at one shape, "
        "or shows one block in full.",
        epilog="example: visgraft blocks cot --channels 256 --size 14",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a block's name or an alias of it")
    parser.add_argument("--role", choices=("gate", "mixer", "downsample"), help="only this role")
    parser.add_argument("--channels", type=int, default=256, help="C of the shape (default: 256)")
    parser.add_argument("--size", type=int, default=14, help="H = W in pixels (default: 14)")
    parser.set_defaults(run=_run, parser=parser)


def _run(args: Namespace) -> None:
    from visgraft.blocks import list_blocks

    if args.name:
        _show(args.name, args.channels, args.size)
        return
    rows = [_row(name, args.channels, args.size) for name in list_blocks(args.role)]
    print(format_table(("block", "role", "parameters", "MACs", "paper"), rows))
    print(f"\nCost at (1, {args.channels}, {args.size}, {args.size}).", end=" ")
    print("`visgraft blocks NAME` shows one in full.")


def _cost(name: str, channels: int, size: int) -> tuple[str, str]:
    from visgraft.blocks import create_block
    from visgraft.inspect import cost

    try:
        total = cost(create_block(name, channels, device="meta"), (1, channels, size, size))
    except ValueError as error:
        return "-", str(error)
    return format_count(total.params), format_count(total.macs)


def _row(name: str, channels: int, size: int) -> tuple[str, ...]:
    from visgraft.blocks import block_info

    info = block_info(name)
    paper = "" if info.paper is None else f"{info.paper.authors}, {info.paper.venue}"
    return (name, info.role, *_cost(name, channels, size), paper)


def _show(name: str, channels: int, size: int) -> None:
    from visgraft.blocks import block_info

    info = block_info(name)
    params, macs = _cost(name, channels, size)
    print(f"{info.name}: {info.cls.__name__}{inspect.signature(info.cls)}\n")
    print(inspect.getdoc(info.cls))
    print(f"\nRole: {info.role}")
    if info.paper is not None:
        print(f"Paper: {info.paper.title} ({info.paper.authors}, {info.paper.venue})")
        print(f"       {info.paper.url}")
    if info.source is not None:
        licence = info.source.licence or "no licence stated"
        print(f"Source: {info.source.repository}, {info.source.file} ({licence})")
    print(f"Aliases: {', '.join(info.aliases) or 'none'}")
    print(f"Cost at (1, {channels}, {size}, {size}): {params} parameters, {macs} MACs")
