"""The metrics of each task: how they are written, read and ranked, declared once for all rooms.

Average precision is COCO's, in percent: Lin et al., "Microsoft COCO: Common Objects in Context",
https://arxiv.org/abs/1405.0312, and https://cocodataset.org/#detection-eval.
"""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["TASK_METRICS", "Metric", "TaskMetrics", "task_metrics"]


@dataclass(frozen=True)
class Metric:
    """A metric as a reader knows it.

    Attributes:
        label: In tables and plots.
        unit: Of a difference; empty where there is none.
        higher_is_better: The direction.
    """

    label: str
    unit: str = ""
    higher_is_better: bool = True


@dataclass(frozen=True)
class TaskMetrics:
    """What is measured on the validation images of a task.

    Attributes:
        default: The name of the metric that decides where nothing else is said.
        metrics: All of them by name, as they stand in ``metrics.csv`` and in a store.
        shown: Names of those that a report shows besides the one that decides.
        first: Names of those of them that stand next to it in a narrow table.
        explained: What a reader of the others must know, in sentences.
    """

    default: str
    metrics: Mapping[str, Metric]
    shown: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    explained: str = ""


_POINTS = "points"
_PRECISIONS = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L")
_SIZES = (
    "AP is the mean over overlaps of 0.5 to 0.95; AP50 and AP75 ask for one overlap. AP_S counts "
    "objects of less than 32 x 32 pixels, AP_L those of more than 96 x 96, AP_M those between; "
    "none: the validation images have no such object."
)


def _precisions(prefix: str, label: str) -> dict[str, Metric]:
    return {prefix + name: Metric(label + name, _POINTS) for name in _PRECISIONS}


_BOXES = _precisions("", "")
_BOXES_AND_MASKS = _precisions("mask_", "mask ") | _precisions("", "box ")

TASK_METRICS: Mapping[str, TaskMetrics] = {
    "classification": TaskMetrics(
        default="top1",
        metrics={
            "top1": Metric("top-1", _POINTS),
            "top5": Metric("top-5", _POINTS),
            "loss": Metric("loss", higher_is_better=False),
        },
    ),
    "detection": TaskMetrics(
        default="AP",
        metrics=_BOXES,
        shown=tuple(_BOXES),
        first=("AP", "AP_S"),
        explained=_SIZES,
    ),
    "instance_segmentation": TaskMetrics(
        default="mask_AP",
        metrics=_BOXES_AND_MASKS,
        shown=tuple(_BOXES_AND_MASKS),
        first=("mask_AP", "AP", "AP_S"),
        explained=_SIZES,
    ),
}


def task_metrics(task: str) -> TaskMetrics:
    """Returns the metrics of a task.

    Raises:
        ValueError: There is no such task.

    Example:
        >>> task_metrics("detection").metrics["AP_S"].unit
        'points'
    """
    if task not in TASK_METRICS:
        raise ValueError(
            f"task_metrics: there is no task {task!r}; choose from {', '.join(TASK_METRICS)}"
        )
    return TASK_METRICS[task]
