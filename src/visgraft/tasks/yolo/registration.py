"""Makes the blocks legal names in ultralytics' YAML.

ultralytics has no hook for layers of others: ``parse_model`` looks names up among the globals of
its module, and decides by lists inside the function what becomes of the channels. ``register``
therefore compiles that function anew with one branch more, which asks the layer. All else it does
stays as the installed version has it.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import Any, cast

from visgraft.tasks.yolo._keeping import keep_grafts
from visgraft.tasks.yolo._library import SUPPORTED, ultralytics_module
from visgraft.tasks.yolo.layers import LAYERS

__all__ = ["layer_names", "register", "unregister"]

BRANCH = """
if hasattr(m, "yolo_row"):
    c2, n, args = m.yolo_row(
        i, ch, f, n, args, lambda c: make_divisible(min(c, max_channels) * width, 8)
    )
"""
READ = {"i", "ch", "f", "n", "m", "args", "max_channels", "width", "c2"}
ORIGINAL = "visgraft_original"


def layer_names() -> list[str]:
    """Returns the names that ``register`` makes legal.

    Example:
        >>> "CoordAttention" in layer_names()
        True
    """
    return sorted(LAYERS)


def register() -> None:
    """Makes ``CoordAttention``, ``CoT``, ``SPDConv``, ... legal layer names in ultralytics' YAML.

    Input channels are inferred and width scaling applies to output channels, as for ultralytics'
    own layers. Calling it again changes nothing; :func:`unregister` takes it back.

    Raises:
        ImportError: ultralytics is missing, or of a version that is not supported.
        RuntimeError: Its ``parse_model`` is not as expected, or one of the names is taken; nothing
            has changed then.
    """
    tasks = ultralytics_module("register", "nn.tasks")
    if hasattr(tasks.parse_model, ORIGINAL):
        return
    taken = [name for name in LAYERS if name in vars(tasks)]
    if taken:
        raise RuntimeError(
            f"register: ultralytics has layers of the names {', '.join(taken)} already; install "
            f"ultralytics{SUPPORTED}, or rename what put them there"
        )
    extended = _extended(tasks.parse_model)
    setattr(extended, ORIGINAL, tasks.parse_model)
    _put(tasks, extended)
    vars(tasks).update(LAYERS)
    keep_grafts()


def unregister() -> None:
    """Takes the names out of ultralytics' YAML again; models that were built stay as they are.

    Raises:
        ImportError: ultralytics is missing, or of a version that is not supported.
    """
    tasks = ultralytics_module("unregister", "nn.tasks")
    original = getattr(tasks.parse_model, ORIGINAL, None)
    if original is None:
        return
    _put(tasks, original)
    for name, layer in LAYERS.items():
        if vars(tasks).get(name) is layer:
            del vars(tasks)[name]


def _put(tasks: Any, parse_model: Callable[..., Any]) -> None:
    tasks.parse_model = parse_model
    ultralytics_module("register", "nn").parse_model = parse_model


def _extended(parse_model: Callable[..., Any]) -> Callable[..., Any]:
    """Returns ``parse_model`` with a branch for layers that read their rows themselves."""
    try:
        lines, first = inspect.getsourcelines(parse_model)
    except OSError as error:
        raise RuntimeError(f"register: ultralytics' source is not there ({error})") from error
    tree = ast.parse(textwrap.dedent("".join(lines)))
    inserter = _Inserter()
    tree = ast.fix_missing_locations(inserter.visit(tree))
    code = parse_model.__code__
    missing = READ.difference(code.co_varnames, code.co_cellvars)
    if inserter.places != 1 or missing:
        raise RuntimeError(
            "register: parse_model of the installed ultralytics is not the one that is known "
            f"({inserter.places} places to extend, missing variables: {sorted(missing)}); install "
            f"another version of ultralytics{SUPPORTED}"
        )
    ast.increment_lineno(tree, first - 1)
    defined: dict[str, Any] = {}
    exec(
        compile(tree, inspect.getfile(parse_model), "exec"),
        parse_model.__globals__,
        defined,
    )
    return defined[parse_model.__name__]


class _Inserter(ast.NodeTransformer):
    """Puts the branch before ``if m in base_modules``."""

    def __init__(self) -> None:
        self.places = 0

    def visit_If(self, node: ast.If) -> ast.If:
        if ast.unparse(node.test) != "m in base_modules":
            self.generic_visit(node)
            return node
        self.places += 1
        branch = cast(ast.If, ast.parse(BRANCH).body[0])
        for part in ast.walk(branch):
            ast.copy_location(part, node)
        branch.orelse = [node]
        return branch
