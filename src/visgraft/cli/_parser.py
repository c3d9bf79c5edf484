"""The argument parser of all commands: plain argparse that names the nearest legal word."""

import argparse
import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NoReturn

__all__ = ["Parser"]

_CHOICE = re.compile(r"argument (.+?): invalid choice: '(.+?)' \(choose from (.+)\)")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that keeps line breaks of epilogs and suggests the nearest option."""

    def __init__(self, **kwargs) -> None:
        kwargs.setdefault("formatter_class", _Formatter)
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Prints the usage and one sentence with the nearest legal words, and exits with 2."""
        if found := re.match(r"unrecognized arguments: (\S+)", message):
            options = [o for a in self._actions for o in a.option_strings]
            message = f"unknown option {found[1]}{_nearest(found[1].split('=')[0], options)}"
        elif found := _CHOICE.match(message):
            choices = re.findall(r"[\w.-]+", found[3])
            message = (
                f"argument {found[1]}: {found[2]!r} is none of {', '.join(choices)}"
                f"{_nearest(found[2], choices)}"
            )
        super().error(message)

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parses; the subcommand that met an unknown option reports it.

        Raises:
            ModuleNotFoundError: The subcommand cannot know its options without a package.
        """
        parsed, unknown = self.parse_known_args(argv)
        if missing := getattr(parsed, "missing", None):
            raise ModuleNotFoundError(name=missing)
        if unknown:
            getattr(parsed, "parser", self).error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=100)


def _nearest(word: str, legal: list[str]) -> str:
    near = get_close_matches(word, legal, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""
