"""Reading YAML that holds one mapping, with errors that name the file and the line."""

import re
from pathlib import Path
from typing import Any

import yaml

__all__ = ["parse_yaml", "read_yaml_mapping"]


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key may occur only once and ``1e-3`` is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise ValueError(f"line {line}: a key must be one word")
            if key_node.value in seen:
                first = seen[key_node.value]
                raise ValueError(
                    f"line {line}: the key {key_node.value!r} was already given in line {first}"
                )
            seen[key_node.value] = line
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(  # YAML 1.1 asks for a dot and reads 1e-3 as text
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def parse_yaml(text: str) -> Any:
    """Returns the value that a YAML text holds; nothing in it is ever executed.

    Raises:
        ValueError: The text is not YAML, or a mapping in it has a key twice.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{where}not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {error}") from error


def read_yaml_mapping(path: Path) -> dict[str, Any]:
    """Reads a YAML file that holds one mapping; an empty file is an empty mapping.

    Raises:
        ValueError: The file cannot be read, is not YAML, or holds something else.
    """
    try:
        value = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not text (UTF-8)") from error
    except ValueError as error:
        raise ValueError(f"{path}, {error}") from error
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{path}: must hold 'field: value' lines, got {type(value).__name__}")
    return value
