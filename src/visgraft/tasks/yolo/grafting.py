"""Grafts into ultralytics' models, which its own trainer then trains."""

import warnings
from typing import Any

from visgraft.surgery import Graft
from visgraft.surgery import graft as graft_model
from visgraft.surgery._draft import BlockMaker, How, Start
from visgraft.surgery._graftable import RebuiltModelWarning
from visgraft.surgery._select import At
from visgraft.tasks.yolo._keeping import keep_grafts, note_grafts
from visgraft.tasks.yolo._library import ultralytics_module

__all__ = ["graft"]


def graft(
    yolo: Any,
    block: str | BlockMaker,
    at: At,
    *,
    how: How | None = None,
    start: Start = "identity",
    strict: bool = True,
    example: Any = None,
    **options: Any,
) -> Graft:
    """Puts a block at chosen layers of an ultralytics model, in place.

    As :func:`visgraft.graft`; besides, ultralytics' trainer, which builds a network of its own from
    the YAML, builds it with the grafts, and so does that of whoever loads a saved file.

    Args:
        yolo: ``YOLO(...)``, or the network inside (``YOLO(...).model``).
        block: See :func:`visgraft.graft`.
        at: See :func:`visgraft.graft`; paths are those of the network: ``"model.6"`` is layer 6.
        how: See :func:`visgraft.graft`.
        start: See :func:`visgraft.graft`.
        strict: See :func:`visgraft.graft`.
        example: See :func:`visgraft.graft`; by default an image of 224 x 224.
        **options: Of the block.

    Returns:
        The graft. Training replaces the network of a ``YOLO`` by the one it saved, which has the
        grafts too; this object goes on belonging to the network from before.

    Raises:
        ImportError: ultralytics is missing, or of a version that is not supported.
        ValueError: ``yolo`` holds no network, or see :func:`visgraft.graft`.
    """
    tasks = ultralytics_module("graft", "nn.tasks")
    engine = ultralytics_module("graft", "engine.model")
    is_wrapper = isinstance(yolo, engine.Model)
    model = yolo.model if is_wrapper else yolo
    if not isinstance(model, tasks.BaseModel):
        raise ValueError(
            "graft: expected YOLO(...) of a .pt or .yaml file, or the network inside, got "
            f"{model!r:.60}; visgraft.graft takes models of other libraries"
        )
    keep_grafts()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RebuiltModelWarning)
        done = graft_model(
            model, block, at, how=how, start=start, strict=strict, example=example, **options
        )
    note_grafts(model, [row.key for row in done.rows])
    if is_wrapper:
        yolo.predictor = None  # it may hold the network as it was
    return done
