"""Looking at a model: what it costs, counted and measured, and what its attention looks like."""

from visgraft.inspect.attention import attention_maps, attention_places
from visgraft.inspect.cost import Cost, cost
from visgraft.inspect.export import ExportReport, export
from visgraft.inspect.fusion import Fused, fuse
from visgraft.inspect.machine import (
    Limits,
    describe_machine,
    machine_limits,
    tuned_environment,
)
from visgraft.inspect.measurement import Measurement, Run, measure
from visgraft.inspect.side_by_side import SideBySide, Timing, measure_side_by_side

__all__ = [
    "Cost",
    "ExportReport",
    "Fused",
    "Limits",
    "Measurement",
    "Run",
    "SideBySide",
    "Timing",
    "attention_maps",
    "attention_places",
    "cost",
    "describe_machine",
    "export",
    "fuse",
    "machine_limits",
    "measure",
    "measure_side_by_side",
    "tuned_environment",
]
