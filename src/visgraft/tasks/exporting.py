"""Exporting the network of a checkpoint, with what its user has to know beside it."""

from pathlib import Path
from typing import Any, Literal

from visgraft.inspect.export import ExportReport, check_export_path, export
from visgraft.tasks.errors import CheckpointError
from visgraft.tasks.evaluation import load_trained

__all__ = ["export_checkpoint"]


def export_checkpoint(
    checkpoint: str | Path,
    path: str | Path,
    *,
    image_size: tuple[int, int] | None = None,
    free: Literal["all", "batch", "none"] = "all",
    fuse: bool = True,
    half: bool = False,
) -> ExportReport:
    """Exports the classifier of a checkpoint to a file that is proved to compute the same.

    The file carries ``classes`` (in the order of the outputs, which are logits) and ``input``: how
    a picture becomes its input (``size`` in pixels, ``mean`` and ``std`` of pixels in 0-1,
    ``crop_pct``, ``interpolation``).

    Args:
        checkpoint: What `train` wrote, of a classifier.
        path: As of `visgraft.export`, like the rest.
        image_size: ``(H, W)`` that is recorded; None takes that of the training.
        free: What callers may change.
        fuse: Fold batch normalisation.
        half: Make a float16 file.

    Returns:
        The report.

    Raises:
        CheckpointError: The checkpoint cannot be read, or is a detector's.
        ValueError: The network cannot be exported so.
        RuntimeError: The file computes something else; nothing was written.
    """
    check_export_path(Path(path))
    trained = load_trained(checkpoint)
    if trained.recipe.task != "classification":
        raise CheckpointError(
            f"export: {checkpoint} is a detector's, and boxes are not exported; classifiers are, "
            "and YOLO networks by ultralytics' own export"
        )
    record = trained.record
    size = image_size or record.input.size
    about: dict[str, Any] = {
        "classes": list(record.classes),
        "input": {
            "size": list(size),
            "mean": list(record.input.mean),
            "std": list(record.input.std),
            "crop_pct": record.input.crop_pct,
            "interpolation": record.input.interpolation,
        },
        "model": trained.recipe.model,
    }
    shape = (1, record.in_chans, *size)
    return export(trained.model, shape, path, free=free, fuse=fuse, half=half, about=about)
