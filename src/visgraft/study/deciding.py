"""Whether the metric that is to decide exists on the validation images."""

from collections.abc import Callable

from visgraft.data.detection import AnnotatedObject, DetectionParts
from visgraft.study.errors import StudyError
from visgraft.study.plan import Study
from visgraft.tasks.images import RunData

__all__ = ["check_metric"]

_SMALL, _LARGE = 32**2, 96**2  # square pixels, as in COCO; the limits belong to both sides
_SIZES: dict[str, tuple[str, Callable[[AnnotatedObject], bool]]] = {
    "_S": ("less than 32 x 32 pixels", lambda item: item.area <= _SMALL),
    "_M": ("32 x 32 to 96 x 96 pixels", lambda item: _SMALL <= item.area <= _LARGE),
    "_L": ("more than 96 x 96 pixels", lambda item: item.area >= _LARGE),
}


def check_metric(study: Study, data: RunData) -> None:
    """Makes sure that the metric of a study exists before anything is trained.

    Raises:
        StudyError: It counts objects of a size that the validation images do not have.
    """
    size, fits = _SIZES.get(study.metric[-2:], ("", None))
    if not isinstance(data, DetectionParts) or fits is None:
        return
    items = (item for image in data.val.images for item in image.objects)
    if not any(fits(item) for item in items if not item.is_crowd):
        raise StudyError(
            f"study {study.name}: the metric {study.metric} cannot decide, because no object in "
            f"the validation images of {data.name} has {size}; choose another one, such as "
            f"{study.metric[:-2]}."
        )
