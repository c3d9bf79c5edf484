"""`visgraft study compare`: two studies beside each other."""

from argparse import Namespace, _SubParsersAction
from pathlib import Path

__all__ = ["add_compare"]

_FORMS = (".md", ".csv")


def add_compare(actions: _SubParsersAction) -> None:
    """Adds the action to the parser of studies."""
    compare = actions.add_parser(
        "compare",
        help="what differs between two studies, and how the networks of both fare",
        description="Lists what differs between two studies, sets the networks that both have side "
        "by side, and tests the difference: paired by seed where data, recipe, initial weights and "
        "order of the images are the same, else by Welch's test.",
        epilog="example: visgraft study compare runs/before runs/after --out changes.md",
    )
    compare.add_argument("a", metavar="A", help="the folder of a study")
    compare.add_argument("b", metavar="B", help="the folder of another one")
    compare.add_argument("--out", metavar="FILE", help="write it to FILE.md or FILE.csv, too")
    compare.set_defaults(run=_compare, parser=compare)


def _compare(args: Namespace) -> None:
    from visgraft.study.errors import StudyError
    from visgraft.study.reports.comparing import compare_studies
    from visgraft.study.reports.comparing_text import (
        comparison_csv,
        comparison_markdown,
        comparison_text,
    )
    from visgraft.tasks.files import write_atomically

    out = Path(args.out) if args.out else None
    if out is not None and out.suffix.lower() not in _FORMS:
        raise StudyError(f"compare: the file must end with {' or '.join(_FORMS)}, got {args.out}.")
    comparison = compare_studies(args.a, args.b)
    print(comparison_text(comparison))
    if out is None:
        return
    render = comparison_csv if out.suffix.lower() == ".csv" else comparison_markdown
    try:
        write_atomically(out, render(comparison).encode())
    except OSError as error:
        raise StudyError(f"compare: {out} cannot be written: {error}.") from error
    print(f"\nwritten: {out}")
