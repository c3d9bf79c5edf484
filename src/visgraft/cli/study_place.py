"""`visgraft study place`: where in a network a block should go."""

from argparse import Namespace, _SubParsersAction

from visgraft.cli._executor_options import add_executor_options
from visgraft.cli._graft_options import add_graft_options

__all__ = ["add_place"]


def add_place(actions: _SubParsersAction) -> None:
    """Adds the action to those of `visgraft study`."""
    parser = actions.add_parser(
        "place",
        help="where in a network should a block go?",
        description="Lists the places of a network where a block can go, screens them by short "
        "training runs, and compares the best ones with the baseline in a full study with other "
        "seeds. Run the same command again after an interruption and it goes on.",
        epilog="example: visgraft study place coord_attention --model resnet10_small \\\n"
        "             --data fashion_mini --seeds 5 --folder runs/place",
    )
    parser.add_argument("block", metavar="BLOCK", help="a name that `visgraft blocks` lists")
    parser.add_argument("--model", help="a name in timm's registry (default: the recipe's)")
    parser.add_argument("--data", help="what to learn from (default: the recipe's)")
    parser.add_argument(
        "--recipe",
        default="cpu_small",
        help="a recipe's name or a YAML file: how the networks are trained (default: cpu_small)",
    )
    parser.add_argument("--epochs", type=int, help="of the final study (default: the recipe's)")
    parser.add_argument(
        "--at",
        action="append",
        default=[],
        metavar="PATTERN",
        help="a place to compare, as `visgraft graft` takes it; commas join several to one; may "
        "be repeated (default: derived from the network)",
    )
    add_graft_options(parser)
    parser.add_argument(
        "--survivors", type=int, help="places in the final study (default: 3, or all of fewer)"
    )
    parser.add_argument(
        "--seeds", type=int, default=5, help="of the final study, at least 2 (default: 5)"
    )
    parser.add_argument(
        "--screening-seeds", type=int, default=2, help="of each rung of screening (default: 2)"
    )
    parser.add_argument(
        "--eta",
        type=int,
        choices=(2, 3),
        default=2,
        help="one of so many places survives a rung, the next is so many times as long "
        "(default: 2)",
    )
    parser.add_argument(
        "--control",
        action="append",
        default=[],
        choices=("widened", "identity"),
        help="of the final study; may be repeated",
    )
    parser.add_argument("--metric", default="", help="that decides (default: the task's own)")
    parser.add_argument(
        "--list", action="store_true", help="list places and prices, and train nothing"
    )
    parser.add_argument(
        "--folder", help="where everything is written (default: runs/place_BLOCK_MODEL)"
    )
    parser.add_argument(
        "--workers", type=int, help="trials at a time (default: one per core, threads shared)"
    )
    parser.add_argument(
        "--threads", type=int, help="CPU threads per trial (default: those of the first run)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress display")
    add_executor_options(parser)
    parser.set_defaults(run=_run, parser=parser)


def _run(args: Namespace) -> int:
    from visgraft.study.placement.placing import place
    from visgraft.study.placement.plan import plan_placement
    from visgraft.study.placement.report import plan_table, result_table

    fields = {name: getattr(args, name) for name in ("model", "data", "epochs")}
    plan = plan_placement(
        args.block,
        recipe=args.recipe,
        at=[pattern.split(",") for pattern in args.at],
        how=args.how,
        start=args.start,
        options=dict(args.option),
        survivors=args.survivors,
        seeds=args.seeds,
        screening_seeds=args.screening_seeds,
        eta=args.eta,
        controls=args.control,
        metric=args.metric,
        **{name: value for name, value in fields.items() if value is not None},
    )
    if args.list:
        print(plan_table(plan))
        return 0
    result = place(
        plan,
        folder=args.folder,
        workers=args.workers,
        threads=args.threads,
        progress=not args.quiet,
        executor=args.executor,
        address=args.address,
        gpus=args.gpus,
        storage=args.storage,
    )
    print(result_table(result))
    print(f"\nreport: {result.report.resolve().as_uri()}")
    return 1 if result.failed else 0
