"""What a detector of torchvision takes besides the arguments of `build_detector`, and its values.

torchvision looks at hardly any of them: a wrong one ends in an error deep inside after the first
epoch, or in a detector that never finds anything.
"""

import inspect
import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from visgraft.tasks.legal_names import nearest

__all__ = ["check_options"]

_NOT_TO_PASS = {
    "self",
    "backbone",
    "num_classes",
    "min_size",
    "max_size",
    "image_mean",
    "image_std",
    "anchor_generator",
    "rpn_anchor_generator",
    "box_predictor",
    "mask_predictor",
    "kwargs",
}
_MAY_EXCEED_ONE = ("center_sampling_radius",)
_FOREGROUND, _BACKGROUND = "fg_iou_thresh", "bg_iou_thresh"


def check_options(detector: str, kind: type[nn.Module], options: Mapping[str, Any]) -> None:
    """Raises ValueError unless a detector takes the options with these values.

    Args:
        detector: Its name.
        kind: torchvision's class.
        options: By name.
    """
    parameters = inspect.signature(kind.__init__).parameters
    defaults = {n: p.default for n, p in parameters.items() if n not in _NOT_TO_PASS}
    for name, value in options.items():
        if name not in defaults:
            raise ValueError(
                f"build_detector: {detector} takes no argument {name!r}{nearest(name, defaults)} "
                f"(it takes {', '.join(sorted(defaults))})"
            )
        if rule := _broken_rule(name, value, defaults[name]):
            raise ValueError(f"build_detector: {name} must be {rule}, got {value!r}")
    used = defaults | dict(options)
    for name in used:
        upper = name.removesuffix(_BACKGROUND) + _FOREGROUND
        if name.endswith(_BACKGROUND) and used[name] > used[upper]:
            raise ValueError(
                f"build_detector: {name} must be at most {upper} ({used[upper]}), got {used[name]}"
            )


def _broken_rule(name: str, value: Any, default: Any) -> str | None:
    """Returns what a value has to be and is not."""
    if name == "bbox_reg_weights":
        is_list = isinstance(value, (tuple, list)) and len(value) == 4
        legal = is_list and all(_is_number(v) and v > 0 for v in value)
        return None if value is None or legal else "four numbers above 0"
    if isinstance(default, int):
        legal = isinstance(value, int) and not isinstance(value, bool) and value > 0
        return None if legal else "a whole number, 1 or more"
    if isinstance(default, float):
        most = math.inf if name in _MAY_EXCEED_ONE else 1
        legal = _is_number(value) and 0 <= value <= most
        return None if legal else "a number, 0 or more" if most > 1 else "a number from 0 to 1"
    return None if value is None or callable(value) else "a part of a detector of torchvision"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
