"""Stages and BatchNorms of a detector's network that stay as they were trained before.

Paper: He, Gkioxari, Dollar and Girshick, "Mask R-CNN", ICCV 2017,
    https://arxiv.org/abs/1703.06870, and its public configurations: BatchNorm is fixed, and so are
    the stem and the first stage.

A frozen module keeps its class, its names and its tensors: its parameters need no gradient and it
stays in evaluation mode. What :func:`visgraft.graft` puts beside a layer is never frozen.
"""

from collections.abc import Iterable, Iterator, Set

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from visgraft.surgery.holders import Holder
from visgraft.tasks.detection.features import modules_until, stages_of

__all__ = ["check_freezing", "freeze_norms", "freeze_stages", "own_modules"]


def own_modules(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yields path and module of all that a network has beside its grafts."""
    grafts = tuple(f"{p}." for p, m in network.named_modules() if isinstance(m, Holder))
    for path, module in network.named_modules():
        if not f"{path}.".startswith(grafts):
            yield path, module


def check_freezing(network: nn.Module, stages: int, norm: bool) -> None:
    """Raises ValueError unless the network has what is to be frozen."""
    name = type(network).__name__
    count = len(stages_of(network))
    if isinstance(stages, bool) or not isinstance(stages, int) or not 0 <= stages <= count:
        raise ValueError(
            f"build_detector: frozen_stages must be 0 (nothing is frozen) to {count}, the stages "
            f"of network {name}, got {stages!r}"
        )
    if norm and not any(isinstance(m, _NormBase) for _, m in own_modules(network)):
        raise ValueError(
            f"build_detector: frozen_norm=True needs a network with BatchNorm, and {name} has "
            "none; leave frozen_norm out"
        )


def freeze_stages(
    network: nn.Module, in_chans: int, stages: int, learning: Set[nn.Parameter]
) -> list[nn.Module]:
    """Stops the parameters of the stem and of the first stages, but those that are to learn.

    Returns:
        The modules that have to stay in evaluation mode.
    """
    if not stages:
        return []
    last = stages_of(network)[stages - 1]
    paths = {"", *modules_until(network, in_chans, last)}
    inside = [module for path, module in own_modules(network) if path in paths]
    return [module for module in _freeze(inside, learning) if module is not network]


def freeze_norms(network: nn.Module, learning: Set[nn.Parameter]) -> list[nn.Module]:
    """Stops the parameters of a network's BatchNorms, but those that are to learn.

    Returns:
        The modules that have to stay in evaluation mode, so that their statistics stay too.
    """
    return _freeze([m for _, m in own_modules(network) if isinstance(m, _NormBase)], learning)


def _freeze(modules: Iterable[nn.Module], learning: Set[nn.Parameter]) -> list[nn.Module]:
    """Stops what modules hold themselves; returns those of which nothing is to learn."""
    frozen: list[nn.Module] = []
    for module in modules:
        own = set(module.parameters(recurse=False))
        for parameter in own - learning:
            parameter.requires_grad_(False)
        if own.isdisjoint(learning):
            frozen.append(module)
    return frozen
