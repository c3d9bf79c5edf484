"""The templates of this package, and the texts that are put into them."""

import re
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from visgraft.study.reports import numbers

__all__ = ["markdown_cell", "resource", "templates"]

_HOME = "visgraft.study.reports"


@cache
def templates(for_html: bool) -> Environment:
    """Returns the templates, with the filters that all of them share.

    Args:
        for_html: Whether texts are escaped for HTML.
    """
    environment = Environment(
        loader=PackageLoader(_HOME),
        autoescape=for_html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for name in numbers.__all__:
        environment.filters[name] = getattr(numbers, name)
    environment.filters["cell"] = markdown_cell
    environment.filters["breakable"] = _breakable
    environment.filters["last_line"] = _last_line
    return environment


def resource(name: str) -> str:
    """Returns the text of a file beside the templates: a style sheet or a script."""
    return files(_HOME).joinpath("templates", name).read_text(encoding="utf-8")


def markdown_cell(text: object) -> str:
    """Returns text that neither ends a table's cell, nor starts a tag, nor changes the type."""
    escaped = re.sub(r"([\\`*_|\[\]])", r"\\\1", str(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")


def _breakable(name: str) -> Markup:
    """A name, escaped, that a narrow column may break after an underscore."""
    return escape(name).replace("_", Markup("_<wbr>"))


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""
