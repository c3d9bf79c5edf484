"""Blocks in ultralytics' models: grafted into one that is there, or named in its YAML.

ultralytics is licensed under AGPL-3.0 and comes with the extra ``visgraft[yolo]``; it is imported
when a function of this package is called.
"""

from visgraft.tasks.yolo.grafting import graft
from visgraft.tasks.yolo.networks import list_networks, network_file, write_network
from visgraft.tasks.yolo.registration import layer_names, register, unregister

__all__ = [
    "graft",
    "layer_names",
    "list_networks",
    "network_file",
    "register",
    "unregister",
    "write_network",
]
