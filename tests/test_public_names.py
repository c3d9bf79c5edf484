"""The public names and the options of the command line, frozen: a change here is a decision.

The lists are `public_names.txt` and `command_line_options.txt` beside this file;
`python -m tests.test_public_names` writes them anew.
"""

import argparse
from importlib import import_module
from pathlib import Path

import pytest

import visgraft
from visgraft.cli.main import build_parser

ROOMS = ("ops", "blocks", "surgery", "inspect", "models", "data", "tasks", "study")
MODULES = ("visgraft", *(f"visgraft.{room}" for room in ROOMS))
STORED_NAMES = Path(__file__).with_name("public_names.txt")
STORED_OPTIONS = Path(__file__).with_name("command_line_options.txt")


def public_names():
    return sorted(f"{m}.{name}" for m in MODULES for name in import_module(m).__all__)


def options(parser, prefix="visgraft "):
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                found += options(sub, f"{prefix}{name} ")
        elif not isinstance(action, argparse._HelpAction):
            found.append(prefix + (action.option_strings or [action.dest])[0])
    return sorted(found)


def test_public_names():
    assert public_names() == STORED_NAMES.read_text().splitlines()


@pytest.mark.parametrize("module", MODULES)
def test_public_names_exist(module):
    missing = [n for n in import_module(module).__all__ if not hasattr(import_module(module), n)]
    assert missing == []


def test_unknown_attribute():
    with pytest.raises(AttributeError, match=r"module 'visgraft' has no attribute 'grafted'"):
        visgraft.grafted  # noqa: B018


def test_command_line_options():
    assert options(build_parser()) == STORED_OPTIONS.read_text().splitlines()


def test_every_command_shows_an_example():
    (commands,) = [a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    for name, parser in commands.choices.items():
        assert "example: visgraft " in parser.format_help(), name


if __name__ == "__main__":
    STORED_NAMES.write_text("\n".join(public_names()) + "\n")
    STORED_OPTIONS.write_text("\n".join(options(build_parser())) + "\n")
