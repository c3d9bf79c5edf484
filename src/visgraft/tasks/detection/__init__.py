"""Detection and instance segmentation; each name is imported when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visgraft.tasks.detection.detectors import DETECTORS, build_detector
    from visgraft.tasks.detection.metrics import DetectionMetrics
    from visgraft.tasks.detection.pyramid import PyramidBackbone

__all__ = ["DETECTORS", "DetectionMetrics", "PyramidBackbone", "build_detector"]

_HOMES = {
    "detectors": ("DETECTORS", "build_detector"),
    "metrics": ("DetectionMetrics",),
    "pyramid": ("PyramidBackbone",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
