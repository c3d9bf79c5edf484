"""`visgraft bench`: operations, blocks and networks, side by side with what they stand for."""

import sys
from argparse import Namespace, _SubParsersAction
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visgraft.cli._table import format_table

if TYPE_CHECKING:
    import torch

    from visgraft.inspect.bench import CaseMaker, Settings

__all__ = ["add_command"]

_SUITES = ("ops", "blocks", "models")


def add_command(commands: _SubParsersAction) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "bench",
        help="measure operations, blocks or networks against the forms they replace",
        description="Times operations, blocks or networks in turns with the form that circulates, "
        "timm's where it has one, and a 3 x 3 convolution, forward and backward, and measures "
        "their memory. Forms that must agree are compared first. Each figure is a median, each "
        "ratio the median of ratios within a round.",
        epilog="example: visgraft bench blocks --only coord_attention --out gates.json",
    )
    parser.add_argument("suite", nargs="+", choices=_SUITES, help="what to measure")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="a name, or a pattern of names or of names with shapes ('cot 8 x 64 x *'); repeatable",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        help="of tensors and parameters (default: float32)",
    )
    parser.add_argument("--channels-last", action="store_true", help="lay the maps out so")
    parser.add_argument("--compile", action="store_true", help="also through torch.compile")
    parser.add_argument(
        "--threads", type=int, default=1, help="of torch and OpenMP on the CPU (default: 1)"
    )
    parser.add_argument("--rounds", type=int, default=7, help="turns of each form (default: 7)")
    parser.add_argument(
        "--budget",
        type=float,
        default=20.0,
        metavar="SECONDS",
        help="for one comparison; three rounds are always made (default: 20)",
    )
    parser.add_argument(
        "--allocator",
        default="tuned",
        choices=("tuned", "default", "both", "as-is"),
        help="settings of glibc's malloc in a child process, or this process as it is "
        "(default: tuned)",
    )
    parser.add_argument("--quick", action="store_true", help="tiny shapes, one round: does it run?")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write the results as JSON; when a case fails, those before it are kept in "
        "FILE with .unfinished before its ending",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the results, .svg or .png")
    parser.set_defaults(run=_run, parser=parser)


def _run(args: Namespace) -> None:
    from visgraft.inspect.bench import (
        ALLOCATORS,
        check_picture,
        check_target,
        draw_document,
        measure_cases,
        measure_in_children,
        unfinished_file,
        write_document,
    )

    def keep(document: dict[str, Any]) -> None:
        if args.out is not None:
            write_document(document, unfinished_file(args.out))

    def keep_and_say(document: dict[str, Any]) -> None:
        keep(document)
        if args.out is not None:
            print(f"bench: what was measured is in {unfinished_file(args.out)}", file=sys.stderr)

    if args.out is not None:
        check_target(args.out)
    if args.plot is not None:
        check_picture(args.plot)
        if args.out is not None and args.plot.absolute() == args.out.absolute():
            raise ValueError(f"bench: --out and --plot both name {args.out}; name two files")
    if args.allocator == "as-is":
        document = measure_cases(
            _makers(args),
            _settings(args),
            only=args.only,
            quick=args.quick,
            tell=lambda line: print(line, file=sys.stderr, flush=True),
            keep=keep,
        )
    else:
        allocators = ALLOCATORS if args.allocator == "both" else (args.allocator,)
        document = measure_in_children(
            _command(args), allocators, threads=args.threads, keep=keep_and_say
        )
    if args.out is not None:
        write_document(document, args.out)
        unfinished_file(args.out).unlink(missing_ok=True)
    if args.plot is not None:
        draw_document(document, args.plot)
    if args.out is None:
        _print(document)


def _settings(args: Namespace) -> "Settings":
    import torch

    from visgraft.inspect.bench import Settings

    return Settings(
        torch.device(args.device),
        getattr(torch, args.dtype),
        args.channels_last,
        args.compile,
        1 if args.quick else args.rounds,
        args.threads,
        args.budget,
    )


def _makers(args: Namespace) -> "Iterator[CaseMaker]":
    import torch

    from visgraft.inspect.bench import block_cases, network_cases, op_cases

    def of(suite: str, device: "torch.device") -> "Iterator[CaseMaker]":
        if suite == "ops":
            return op_cases(device, quick=args.quick)
        if suite == "blocks":
            return block_cases(device, quick=args.quick)
        from visgraft.models import create_model

        return network_cases(create_model, device, quick=args.quick)

    return chain.from_iterable(of(suite, torch.device(args.device)) for suite in args.suite)


def _command(args: Namespace) -> list[str]:
    """Returns the arguments for Python that repeat this command in a process as it is."""
    start = "import sys; from visgraft.cli.main import main; sys.exit(main())"
    words = ["-c", start, "bench", *args.suite, "--allocator", "as-is"]
    for name in ("device", "dtype", "threads", "rounds", "budget"):
        words += [f"--{name}", str(getattr(args, name))]
    words += [f"--only={name}" for name in args.only]
    for name in ("channels_last", "compile", "quick"):
        words += [f"--{name.replace('_', '-')}"] * getattr(args, name)
    return [*words, "--out"]


def _print(document: dict[str, Any]) -> None:
    for run in document["runs"]:
        limits = run["limits"]
        print(
            f"allocator {run['allocator']}, {run['threads']} threads, {run['clock']} clock; copy "
            f"{limits['copy_small'] / 1e9:.0f} and {limits['copy_large'] / 1e9:.0f} GB/s, matrix "
            f"product {limits['multiply'] / 1e9:.0f} GFLOP/s"
        )
        for record in run["records"]:
            print(f"\n{record['case']}, {' x '.join(map(str, record['shape']))}, {record['step']}")
            print(format_table(_HEADER, [_row(record, name) for name in record["timings"]]))
            for name, reason in record["refused"].items():
                print(f"  {name}: {reason}")


_HEADER = ("form", "ms", "ratio", "quartiles", "peak MiB", "of copy", "of product")


def _row(record: dict[str, Any], name: str) -> tuple[str, ...]:
    timing, reached = record["timings"][name], record["reached"][name]
    peak, product = timing["peak_memory"], reached["of_multiply"]
    return (
        name,
        f"{1e3 * timing['seconds']:.3f}",
        f"{timing['ratio']:.3f}",
        f"{timing['ratio_low']:.2f} to {timing['ratio_high']:.2f}",
        "-" if peak is None else f"{peak / 2**20:.1f}",
        f"{reached['of_copy']:.2f}",
        "-" if product is None else f"{product:.2f}",
    )
