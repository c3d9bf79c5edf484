"""The options of a command that say how a block is put into a network."""

import ast
from argparse import ArgumentParser, ArgumentTypeError
from typing import Any

__all__ = ["add_graft_options"]


def add_graft_options(parser: ArgumentParser) -> None:
    """Adds ``--how``, ``--start`` and ``--option``."""
    parser.add_argument(
        "--how",
        choices=("replace", "after", "parallel"),
        help="where the block goes (default: by its role)",
    )
    parser.add_argument(
        "--start",
        choices=("identity", "paper"),
        default="identity",
        help="what the network computes at first (default: identity)",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        type=_option,
        metavar="NAME=VALUE",
        help="an option of the block, such as kernel_size=5; may be repeated",
    )


def _option(text: str) -> tuple[str, Any]:
    """Reads ``name=value``; the value is a Python literal, else text."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE, such as kernel_size=5")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, {"true": True, "false": False, "none": None}.get(value, value)
