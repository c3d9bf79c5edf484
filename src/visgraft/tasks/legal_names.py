"""Which optimizers, schedules, networks, blocks and policies exist; heavy imports happen on use."""

import inspect
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

__all__ = [
    "DETECTORS",
    "SCHEDULES",
    "check_auto_augment",
    "check_block",
    "check_detector_args",
    "check_model",
    "check_optimizer",
    "check_schedule_args",
    "nearest",
]

SCHEDULES = ("cosine", "tanh", "step", "multistep", "poly", "wsd", "rsqrt", "constant", "none")
"""The schedules of timm that are functions of time alone ("plateau" depends on a metric)."""

DETECTORS = ("faster_rcnn", "mask_rcnn", "retinanet", "fcos")
"""The detectors of torchvision that can be built on a network."""

_DETECTOR_FIELDS = {
    "detector",
    "network",
    "num_classes",
    "image_size",
    "mean",
    "std",
    "frozen_stages",
    "frozen_norm",
    "learning",
    "min_size",
    "max_size",
    "image_mean",
    "image_std",
}
_DETECTOR_PARTS = _DETECTOR_FIELDS | {
    "backbone",
    "anchor_generator",
    "rpn_anchor_generator",
    "box_head",
    "box_predictor",
    "box_roi_pool",
    "head",
    "mask_head",
    "mask_predictor",
    "mask_roi_pool",
    "proposal_matcher",
    "rpn_head",
}
_NEEDS_SECOND_ORDER = {"adahessian"}
_SCHEDULE_FIELDS = {
    "optimizer": "",
    "sched": "schedule",
    "num_epochs": "epochs",
    "min_lr": "min_lr",
    "warmup_epochs": "warmup_epochs",
    "warmup_prefix": "warmup_epochs",
    "step_on_epochs": "schedule_on",
    "updates_per_epoch": "schedule_on",
}


def nearest(word: str, legal: Iterable[str]) -> str:
    """Returns ``"; did you mean a or b?"`` for the names like ``word``, or nothing."""
    near = get_close_matches(word, list(legal), n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def check_optimizer(name: str, arguments: Mapping[str, Any] | None = None) -> None:
    """Raises ValueError unless timm has the optimizer and it takes the arguments."""
    from timm.optim import (
        get_optimizer_class,  # pyright: ignore[reportPrivateImportUsage]
        list_optimizers,  # pyright: ignore[reportPrivateImportUsage]
    )

    legal = [str(n) for n in list_optimizers() if n not in _NEEDS_SECOND_ORDER]
    if name not in legal:
        some = ", ".join(("sgd", "adamw", "lamb", "lion", "muon"))
        raise ValueError(f"{name!r} is no optimizer of timm (such as {some}){nearest(name, legal)}")
    if arguments:
        taken = _keywords(get_optimizer_class(name, bind_defaults=False)) - {"params"}
        taken |= {"layer_decay", "layer_decay_min_scale", "filter_bias_and_bn"}
        own = taken & {"lr", "weight_decay", "momentum"}
        _check_keywords(f"optimizer {name!r}", arguments, taken - own)


def check_schedule_args(arguments: Mapping[str, Any]) -> None:
    """Raises ValueError unless timm's schedules take the arguments."""
    from timm.scheduler.scheduler_factory import create_scheduler_v2

    for name in arguments:
        if field := _SCHEDULE_FIELDS.get(name):
            raise ValueError(f"{name!r} is set by the field {field}")
    _check_keywords("a schedule", arguments, _keywords(create_scheduler_v2) - set(_SCHEDULE_FIELDS))


def check_model(name: str) -> None:
    """Raises ValueError unless timm or visgraft has a network of this name."""
    import timm

    import visgraft.models  # noqa: F401 - registers ours

    architecture = name.split(".", 1)[0]
    if ":" not in name and not timm.is_model(architecture):  # "hf-hub:..." is looked up by timm
        hint = nearest(architecture, timm.list_models())
        raise ValueError(f"{name!r} is no network of timm or visgraft{hint}")


def check_block(name: str, options: Mapping[str, Any]) -> None:
    """Raises ValueError unless the catalogue has the block and it takes the options."""
    from visgraft.blocks import block_info

    taken = _keywords(block_info(name).cls) - {"channels", "in_channels", "device", "dtype"}
    _check_keywords(f"block {name!r}", options, taken)


def check_detector_args(detector: str, arguments: Mapping[str, Any]) -> None:
    """Raises ValueError unless the detector takes the arguments; their values are not looked at."""
    from visgraft.tasks.detection.detectors import DETECTORS as CLASSES
    from visgraft.tasks.detection.detectors import build_detector

    for name in arguments:
        if name in _DETECTOR_FIELDS:
            raise ValueError(f"{name!r} follows from the recipe's other fields; leave it out")
    taken = _keywords(build_detector) - _DETECTOR_FIELDS
    taken |= _keywords(CLASSES[detector]) - _DETECTOR_PARTS
    _check_keywords(detector, arguments, taken)


def check_auto_augment(policy: str) -> None:
    """Raises ValueError unless timm understands the augmentation policy."""
    from timm.data.auto_augment import (
        augment_and_mix_transform,
        auto_augment_transform,
        rand_augment_transform,
    )

    if policy.startswith("rand"):
        build = rand_augment_transform
    elif policy.startswith("augmix"):
        build = augment_and_mix_transform
    else:
        build = auto_augment_transform
    try:
        build(policy, {"translate_const": 10, "img_mean": (124, 116, 104)})
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(
            f"{policy!r} is no policy of timm, such as rand-m9-mstd0.5, augmix-m3-w3 or original"
        ) from error


def _keywords(function: Any) -> set[str]:
    """Returns the names of the arguments that a function or a class's constructor takes."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _check_keywords(owner: str, arguments: Mapping[str, Any], legal: Collection[str]) -> None:
    unknown = [name for name in arguments if name not in legal]
    if unknown:
        raise ValueError(
            f"{owner} takes no argument {unknown[0]!r}{nearest(unknown[0], legal)}"
            f" (it takes {', '.join(sorted(legal))})"
        )
