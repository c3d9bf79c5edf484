"""`visgraft study`: run, report, plan, demo."""

from argparse import ArgumentParser, Namespace, _SubParsersAction
from pathlib import Path

from visgraft.cli._executor_options import add_executor_options
from visgraft.cli.study_compare import add_compare
from visgraft.cli.study_place import add_place

__all__ = ["add_command"]


def add_command(commands: _SubParsersAction) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "study",
        help="compare variants of a network fairly, with seeds and intervals",
        description="A study trains a baseline and its variants by one recipe with several seeds, "
        "and says with which certainty they differ.",
        epilog="example: visgraft study demo --folder runs/demo",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    run = actions.add_parser(
        "run",
        help="run a study, or go on with it",
        description="Runs a study, or what is left of it: finished trials are never run again, an "
        "interrupted one goes on from its last epoch.",
        epilog="example: visgraft study run my_study.yaml --folder runs/my_study",
    )
    run.add_argument("file", metavar="FILE", help="the study, a YAML file")
    _add_run_options(run, folder=None)
    add_executor_options(run)
    run.set_defaults(run=_run, parser=run)

    report = actions.add_parser(
        "report",
        help="write the report of a study, finished or not",
        description="Writes report.html, report.md and report.csv into the study's folder.",
        epilog="example: visgraft study report runs/my_study",
    )
    report.add_argument("folder", metavar="DIR", help="the folder of the study")
    report.add_argument(
        "--pictures",
        action="store_true",
        help="draw first what the networks look at, anew; needs the images and the checkpoints",
    )
    report.set_defaults(run=_report, parser=report)

    plan = actions.add_parser(
        "plan",
        help="how many seeds are needed to see a difference",
        description="Says beforehand how many seeds show a true difference between a variant and "
        "the baseline, by the rule of the verdict: two-sided paired t-test, Holm's correction.",
        epilog="example: visgraft study plan --difference 0.5 --spread 0.4 --variants 3",
    )
    plan.add_argument(
        "--difference", type=float, required=True, help="what is to be seen, such as 0.5 points"
    )
    source = plan.add_mutually_exclusive_group(required=True)
    source.add_argument("--pilot", metavar="DIR", help="a study that has run with a few seeds")
    source.add_argument(
        "--spread", type=float, help="standard deviation of the paired differences over seeds"
    )
    plan.add_argument(
        "--variants", type=int, help="variants of the study (default: the pilot's, or 1)"
    )
    plan.add_argument(
        "--power", type=float, default=0.8, help="probability to see it (default: 0.8)"
    )
    plan.set_defaults(run=_plan, parser=plan)

    demo = actions.add_parser(
        "demo",
        help="three blocks in a small ResNet, on images inside the package",
        description="Compares CoT, Coordinate Attention and Global Context in a small ResNet on "
        "Fashion-MNIST images, three seeds each: some minutes on two CPU cores.",
        epilog="example: visgraft study demo --folder runs/demo",
    )
    _add_run_options(demo, folder="runs/demo")
    add_executor_options(demo)
    demo.set_defaults(run=_run, parser=demo, file="demo")
    add_compare(actions)
    add_place(actions)
    parser.set_defaults(parser=parser)


def _add_run_options(parser: ArgumentParser, folder: str | None) -> None:
    default = folder or "runs/NAME of the file"
    parser.add_argument(
        "--folder", default=folder, help=f"where everything is written (default: {default})"
    )
    parser.add_argument(
        "--workers", type=int, help="trials at a time (default: one per core, threads shared)"
    )
    parser.add_argument(
        "--threads", type=int, help="CPU threads per trial (default: those of the first run)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress display")
    costs = parser.add_mutually_exclusive_group()
    costs.add_argument(
        "--no-measure",
        dest="measure",
        action="store_false",
        default=True,
        help="do not measure latency and memory of the networks at the end",
    )
    costs.add_argument(
        "--measure-again",
        dest="measure",
        action="store_const",
        const="again",
        help="measure them at the end also if that was done before",
    )


def _run(args: Namespace) -> int:
    from visgraft.study import load_study, run_study

    study = load_study(args.file)
    folder = Path(args.folder or Path("runs") / Path(args.file).stem)
    result = run_study(
        study,
        folder,
        workers=args.workers,
        threads=args.threads,
        progress=not args.quiet,
        measure=args.measure,
        executor=args.executor,
        address=args.address,
        gpus=args.gpus,
        storage=args.storage,
    )
    _print_report(folder)
    return 1 if result.failed else 0


def _report(args: Namespace) -> None:
    if args.pictures:
        from visgraft.study.reports.explaining import redraw_pictures

        redraw_pictures(args.folder)
    _print_report(Path(args.folder))


def _plan(args: Namespace) -> None:
    from visgraft.cli._table import format_table
    from visgraft.study.planning import in_words, plan_seeds

    plans = plan_seeds(
        args.difference,
        spread=args.spread,
        pilot=args.pilot,
        variants=args.variants,
        power=args.power,
    )
    if args.pilot is not None:
        header = ("variant", "pairs", "spread", "seeds", "spread at most", "seeds at most")
        rows = [
            (p.variant, p.pairs, f"{p.spread:.3f}", p.seeds, f"{p.spread_high:.3f}", p.seeds_high)
            for p in plans
        ]
        print(format_table(header, rows), end="\n\n")
    print(in_words(plans, args.difference, args.power))


def _print_report(folder: Path) -> None:
    from visgraft.study import report, study_data, terminal_table

    path = report(folder)
    print(terminal_table(study_data(folder)))
    print(f"\nreport: {path.resolve().as_uri()}")
