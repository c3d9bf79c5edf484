"""Ready networks for ultralytics: YAML files in the package, reached by name.

The networks are those of YOLOv5 and YOLOv8 (https://github.com/ultralytics/ultralytics at 8.4.190)
with one kind of block, and YOLOv5-SPD (https://github.com/LabSAINT/SPD-Conv,
YOLOv5-SPD/models/space_depth_n.yaml); written from their structure.
"""

import re
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path

from visgraft.tasks.files import write_atomically
from visgraft.tasks.yaml_mapping import parse_yaml
from visgraft.tasks.yolo._library import ultralytics_module
from visgraft.tasks.yolo.registration import register

__all__ = ["list_networks", "network_file", "write_network"]

SIZED = re.compile(r"(\d+)([nslmx])(.+)?$")  # how ultralytics finds the letter of the size


def list_networks() -> list[str]:
    """Returns the names of the ready networks, each with the letter of its size.

    Example:
        >>> [name for name in list_networks() if name.endswith("spd")][:4]
        ['yolov5l_spd', 'yolov5m_spd', 'yolov5n_spd', 'yolov5s_spd']
    """
    return sorted(_stored())


def network_file(name: str) -> str:
    """Returns what to give to ``YOLO(...)`` for a ready network, and registers the layers' names.

    ultralytics reads the size from the letter behind the number, and the network from the file
    without the letter: the path that is returned is understood by it, not a file to be opened.
    :func:`write_network` writes one. Where the package lies in a folder whose name ultralytics
    takes for the size (``torch2x``), the path is that of a copy in ultralytics' settings folder.

    Args:
        name: One of :func:`list_networks`, such as ``"yolov5n_spd"``.

    Raises:
        ImportError: ultralytics is missing, or of a version that is not supported.
        ValueError: There is no such network.
        RuntimeError: See :func:`visgraft.tasks.yolo.register`.
        OSError: A copy cannot be written.
    """
    stored = _found("network_file", name)
    register()
    path = stored.with_name(f"{name}.yaml")
    if SIZED.sub(r"\1\3", str(path)) == str(stored):
        return str(path)
    folder = Path(ultralytics_module("network_file", "utils").USER_CONFIG_DIR) / "visgraft"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / path.name, stored.read_bytes())
    return str(folder / path.name)


def write_network(name: str, folder: str | Path) -> Path:
    """Writes the file of a ready network, to be changed or to be read from any folder.

    Args:
        name: One of :func:`list_networks`.
        folder: Where to write ``{name}.yaml``; it has to exist.

    Returns:
        The file. Call :func:`visgraft.tasks.yolo.register` before ``YOLO(file)``.

    Raises:
        ValueError: There is no such network, or no such folder.
        FileExistsError: The file is there already.
    """
    stored = _found("write_network", name)
    file = Path(folder) / f"{name}.yaml"
    if not file.parent.is_dir():
        raise ValueError(f"write_network: there is no folder {folder}; make it first")
    if file.exists():
        raise FileExistsError(f"write_network: {file} is there already; move it or take it away")
    write_atomically(file, stored.read_bytes())
    return file


def _stored() -> dict[str, Path]:
    """Returns the file that each network is read from."""
    stored = {}
    for file in Path(str(files("visgraft.tasks.yolo") / "networks")).glob("*.yaml"):
        for scale in _scales(file):
            stored[re.sub(r"(\d+)", rf"\1{scale}", file.stem, count=1)] = file
    return stored


@cache
def _scales(file: Path) -> list[str]:
    return list(parse_yaml(file.read_text(encoding="utf-8"))["scales"])


def _found(owner: str, name: str) -> Path:
    stored = _stored()
    if name not in stored:
        near = get_close_matches(str(name), stored, n=3, cutoff=0.5)
        hint = f"; near are {', '.join(near)}" if near else ""
        raise ValueError(
            f"{owner}: there is no network {name!r}, the letter of the size included{hint}; "
            "list_networks() names all"
        )
    return stored[name]
