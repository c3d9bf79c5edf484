"""`visgraft graft`: puts a block into a network and shows what that does to it."""

import json
from argparse import Namespace, _SubParsersAction
from pathlib import Path

from visgraft.cli._graft_options import add_graft_options

__all__ = ["add_command"]


def add_command(commands: _SubParsersAction) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "graft",
        help="put a block into a network and report what it costs and keeps",
        description="Puts a block into a network, prints per site what was added and kept, and "
        "how far the outputs are from those before. Nothing is written unless --plan or --output "
        "says so.",
        epilog="example: visgraft graft resnet18 coord_attention --at block_end "
        "--option reduction=16",
    )
    parser.add_argument("model", metavar="MODEL", help="a name in timm's registry, ours included")
    parser.add_argument("block", metavar="BLOCK", help="a name that `visgraft blocks` lists")
    parser.add_argument(
        "--at",
        action="append",
        required=True,
        metavar="PATTERN",
        help="a kind, STAGE/KIND or path pattern that `visgraft sites` lists; may be repeated",
    )
    add_graft_options(parser)
    parser.add_argument(
        "--loose", action="store_true", help="leave out the sites where the block does not fit"
    )
    parser.add_argument("--image-size", type=int, help="in pixels (default: the model's own)")
    parser.add_argument("--in-chans", type=int, default=3, help="image channels (default: 3)")
    parser.add_argument("--num-classes", type=int, help="of the classifier (default: its own)")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--weights", metavar="FILE", help="weights of the network before grafting")
    weights.add_argument("--pretrained", action="store_true", help="download timm's weights")
    parser.add_argument(
        "--plan", metavar="FILE", help="write the plan, which apply_plan repeats, as JSON"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="write the grafted network, which visgraft.load reads, as .safetensors",
    )
    parser.add_argument("--force", action="store_true", help="replace files that are there")
    parser.set_defaults(run=_run, parser=parser)


def _run(args: Namespace) -> None:
    import visgraft
    from visgraft.tasks.bare import build_bare
    from visgraft.tasks.files import write_atomically

    files = [Path(file) for file in (args.plan, args.output) if file is not None]
    for file in files:
        if file.exists() and not args.force:
            raise ValueError(f"{file} is there already; --force replaces it")
        if not file.absolute().parent.is_dir():
            raise ValueError(f"{file} cannot be written: there is no folder {file.parent}")
    size = args.image_size
    model, options = build_bare(
        args.model,
        num_classes=args.num_classes,
        in_chans=args.in_chans,
        image_size=size,
        pretrained=args.pretrained,
        weights=args.weights,
    )
    done = visgraft.graft(
        model,
        args.block,
        args.at,
        how=args.how,
        start=args.start,
        strict=not args.loose,
        example=None if size is None else (1, args.in_chans, size, size),
        **dict(args.option),
    )
    print(done)
    if args.plan is not None:
        write_atomically(Path(args.plan), (json.dumps(done.plan, indent=2) + "\n").encode())
        print(f"plan:  {args.plan}")
    if args.output is not None:
        visgraft.save(model, args.output, grafts=done, name=args.model, options=options)
        print(f"model: {args.output}")
