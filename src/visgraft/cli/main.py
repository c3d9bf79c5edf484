"""Entry point of the command line: lists the subcommands and turns errors into one sentence."""

import os
import sys
from collections.abc import Sequence

from visgraft._version import __version__
from visgraft.cli import (
    bench,
    blocks,
    convert,
    data,
    env,
    explain,
    export,
    graft,
    models,
    predict,
    sites,
    study,
    train,
)
from visgraft.cli import eval as evaluation
from visgraft.cli._parser import Parser

__all__ = ["build_parser", "main"]

_COMMANDS = (
    blocks,
    models,
    convert,
    sites,
    graft,
    data,
    train,
    evaluation,
    predict,
    explain,
    export,
    study,
    bench,
    env,
)
_EXIT_INTERRUPTED = 130  # what a shell expects after Ctrl-C


def build_parser() -> Parser:
    """Returns the parser with all subcommands."""
    parser = Parser(
        prog="visgraft",
        description="Puts published attention and convolution blocks into any PyTorch vision "
        "model, keeps the weights, and measures honestly whether the block helps.",
        epilog="example: visgraft sites resnet50 --kind conv3x3\n"
        "Each command has its own --help with an example.",
    )
    parser.add_argument("--version", action="version", version=f"visgraft {__version__}")
    parser.add_argument(
        "--traceback", action="store_true", help="show the whole traceback of an error"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add_command(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0, 2 for a bad request, 130 after Ctrl-C."""
    wants_traceback = False
    try:
        args = build_parser().parse(argv)
        wants_traceback = args.traceback
        return args.run(args) or 0
    except KeyboardInterrupt as stop:
        print(f"\nvisgraft: stopped. {stop}".rstrip(), file=sys.stderr)
        return _EXIT_INTERRUPTED
    except BrokenPipeError:  # `visgraft blocks | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ImportError as error:
        package = (error.name or "").split(".")[0]
        if wants_traceback or package == "visgraft":
            raise
        reason = f"this command needs the package {package!r}, which is not installed"
        print(
            f"visgraft: {reason if package else error}; pip install 'visgraft[train]' brings all "
            "that the commands need",
            file=sys.stderr,
        )
        return 2
    except (ValueError, OSError, RuntimeError) as error:
        if wants_traceback:
            raise
        print(f"visgraft: {error}", file=sys.stderr)
        return 2
