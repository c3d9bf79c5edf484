"""What a layer built from the YAML carries, so that files with it can be trained on.

ultralytics' trainer builds the network of a file anew from the YAML inside, where the names have to
be known. The record makes them so when the file is loaded.
"""

from importlib import import_module
from typing import Any

__all__ = ["YAML_RECORD", "YamlRecord"]

YAML_RECORD = "visgraft_yaml"


class YamlRecord:
    """Registers the names when it is unpickled, as ``visgraft.tasks.yolo.register`` does."""

    def __init__(self) -> None:
        self.needs = "visgraft.tasks.yolo.register"

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        import_module("visgraft.tasks.yolo.registration").register()

    def __deepcopy__(self, memo: dict[int, Any]) -> "YamlRecord":
        return self  # a copy of the model is no file
