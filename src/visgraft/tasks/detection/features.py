"""Which feature maps of a timm network a pyramid stands on, found by running it on shapes alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from visgraft._shapes import fake_copy, fake_mode, first_line, like_of, shapes_only
from visgraft.surgery.holders import Holder

__all__ = ["FeaturePlan", "modules_until", "plan_features", "stages_of"]

_SIZES = ((128, 192), (320, 256))  # pixels; two that have no side in common
_WHICH_CAN = (
    "take a network of timm or visgraft.models whose maps shrink from stage to stage and that runs "
    "at any image size, such as resnet50, cotnet50, efficientnet_b0 or convnext_tiny"
)


@dataclass(frozen=True)
class FeaturePlan:
    """The feature maps that are taken of a network.

    Attributes:
        indices: Which of the network's maps, as in timm's ``out_indices``, counted from 0.
        channels: Of each map.
        reductions: Pixels of the image per position of the map, for each map.
    """

    indices: tuple[int, ...]
    channels: tuple[int, ...]
    reductions: tuple[int, ...]


def plan_features(
    network: nn.Module, in_chans: int, out_indices: Sequence[int] | None, min_reduction: int
) -> FeaturePlan:
    """Chooses the maps and checks that the network gives them at more than one image size.

    The network is left as it is.

    Args:
        network: A classification network of timm's kind.
        in_chans: Channels of an image.
        out_indices: Which maps; None takes all that have ``min_reduction`` at least.
        min_reduction: Of the first map, where ``out_indices`` is None.

    Raises:
        ValueError: The network cannot serve, or has no such maps.
    """
    name = type(network).__name__
    if not hasattr(network, "forward_intermediates") or not hasattr(network, "feature_info"):
        raise ValueError(
            f"build_detector: network {name} has no forward_intermediates, by which feature maps "
            f"are taken (a network built with features_only has none either); {_WHICH_CAN}"
        )
    every = _Run(network, in_chans, _SIZES[0])
    if len(set(every.reductions)) == 1 and len(every.reductions) > 1:
        raise ValueError(
            f"build_detector: all {len(every.reductions)} maps of network {name} have one position "
            f"per {every.reductions[0]} pixels, and a pyramid needs maps that shrink; {_WHICH_CAN}"
        )
    indices = _choose(name, every.reductions, out_indices, min_reduction)
    chosen = _Run(network, in_chans, _SIZES[1], indices)
    expected = tuple(every.reductions[i] for i in indices)
    if chosen.reductions != expected:
        raise ValueError(
            f"build_detector: the maps of network {name} have one position per {expected} pixels "
            f"of an image of {_SIZES[0]} and per {chosen.reductions} of one of {_SIZES[1]}; "
            f"{_WHICH_CAN}"
        )
    if chosen.idle_grafts:
        raise ValueError(
            f"build_detector: the graft {chosen.idle_grafts[0]!r} in network {name} does not run "
            f"for the maps {indices}; undo it or choose out_indices that lie behind it"
        )
    return FeaturePlan(indices, chosen.channels, chosen.reductions)


def stages_of(network: nn.Module) -> list[int]:
    """Returns the indices of the maps that are the ends of stages, in order: all but the stem's."""
    paths = [str(entry["module"]) for entry in _feature_info(network)]
    kinds = [type(m) for m in map(dict(network.named_modules()).get, paths[:2])]
    is_stem = len(paths) > 1 and ("stem" in paths[0] or kinds[0] is not kinds[1])
    return list(range(int(is_stem), len(paths)))


def modules_until(network: nn.Module, in_chans: int, index: int) -> list[str]:
    """Returns the paths of the modules that the map at ``index`` needs.

    A module that is read and not called goes with the one that it is a part of.
    """
    called = _Run(network, in_chans, _SIZES[0], (index,)).called
    found: list[str] = []
    for path, _ in network.named_modules():
        parent = path.rpartition(".")[0]
        if path in called or (parent and parent in found):
            found.append(path)
    return found


class _Run:
    """What happens when a network is pruned to some of its maps and run for them on shapes."""

    def __init__(
        self,
        network: nn.Module,
        in_chans: int,
        size: tuple[int, int],
        indices: Sequence[int] | None = None,
    ) -> None:
        mode = fake_mode()
        clone = fake_copy(network, mode)
        device, dtype = like_of([clone])
        calls: list[nn.Module] = []
        kept = indices
        try:
            if indices is not None:
                kept = prune(clone, indices)
            for module in clone.modules():
                module.register_forward_pre_hook(lambda called, _: calls.append(called))
            with shapes_only(mode):
                image = torch.empty(2, in_chans, *size, device=device, dtype=dtype)
                maps = take_maps(clone, image, kept)
        except Exception as error:
            name = type(network).__name__
            hint = "create it with strict_img_size=False, or " if name.startswith("Swin") else ""
            raise ValueError(
                f"build_detector: network {name} does not run on images with {in_chans} channels "
                f"and {size[0]} x {size[1]} pixels ({first_line(error)}); {hint}{_WHICH_CAN}"
            ) from error
        self.channels = tuple(int(m.shape[1]) for m in maps)
        self.reductions = tuple(_reduction(type(network).__name__, m, size) for m in maps)
        ran = set(map(id, calls))
        self.called = {path for path, m in clone.named_modules() if path and id(m) in ran}
        self.idle_grafts = [
            path
            for path, module in network.named_modules()
            if isinstance(module, Holder) and module.enabled and path not in self.called
        ]


def prune(network: nn.Module, indices: Sequence[int]) -> list[int]:
    """Takes the classifier and the stages behind the last map out of a network, in place.

    Returns:
        The indices of the same maps from now on.
    """
    shorten: Any = getattr(network, "prune_intermediate_layers", None)
    if shorten is None:
        return list(indices)
    return list(shorten(list(indices), prune_norm=True, prune_head=True))


def take_maps(network: nn.Module, images: Tensor, indices: Sequence[int] | None) -> list[Tensor]:
    """Returns feature maps ``(B, C, H, W)`` of a network, in order.

    Args:
        network: A network of timm's kind.
        images: Of shape ``(B, C, H, W)``.
        indices: Which maps; None for all.
    """
    run: Any = network.forward_intermediates
    return list(
        run(
            images,
            indices=None if indices is None else list(indices),
            stop_early=True,
            output_fmt="NCHW",
            intermediates_only=True,
        )
    )


def _choose(
    name: str,
    reductions: Sequence[int],
    out_indices: Sequence[int] | None,
    min_reduction: int,
) -> tuple[int, ...]:
    """Returns the indices of the maps, counted from 0."""
    count = len(reductions)
    if out_indices is None:
        chosen = [i for i, r in enumerate(reductions) if r >= min_reduction]
        while len(chosen) > 1 and reductions[chosen[0]] == reductions[chosen[1]]:
            chosen = chosen[1:]  # of maps of one size at the start, the deepest
        if not chosen:
            raise ValueError(
                f"build_detector: no map of network {name} has one position per {min_reduction} "
                f"pixels or more (they have {', '.join(map(str, reductions))}); name the maps to "
                "take in out_indices"
            )
        return tuple(chosen)
    given: Any = list(out_indices) if isinstance(out_indices, Sequence) else out_indices
    is_list = isinstance(given, list)
    legal = is_list and all(isinstance(i, int) and -count <= i < count for i in given)
    chosen = tuple(i % count for i in given) if legal else ()
    if not chosen or list(chosen) != sorted(set(chosen)):
        raise ValueError(
            f"build_detector: out_indices must be rising indices of the {count} maps of network "
            f"{name} (pixels per position {', '.join(map(str, reductions))}), got {given}"
        )
    return chosen


def _reduction(name: str, feature_map: Tensor, size: tuple[int, int]) -> int:
    """Returns how many pixels of a side one position stands for."""
    if feature_map.ndim == 4 and min(feature_map.shape[2:]) > 0:
        rows, columns = feature_map.shape[2:]
        reduction = size[0] // rows
        if rows * reduction == size[0] and columns * reduction == size[1]:
            return int(reduction)
    raise ValueError(
        f"build_detector: network {name} gives a map of shape {tuple(feature_map.shape)} for "
        f"images of {size[0]} x {size[1]} pixels, which is no whole part of them; {_WHICH_CAN}"
    )


def _feature_info(network: nn.Module) -> list[dict[str, Any]]:
    info: Any = network.feature_info
    return list(info)
