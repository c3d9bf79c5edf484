"""What checkpoints put around a state dict, and how it is taken off: containers and prefixes."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

__all__ = ["EMA_CONTAINERS", "State", "take_off_prefixes", "unwrap"]

State = dict[str, Tensor]

EMA_CONTAINERS = ("state_dict_ema", "model_ema")
_CONTAINERS = ("state_dict", "state_dict_ema", "model", "model_ema")
_PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.")


def unwrap(weights: Mapping[str, Any], *, ema: bool) -> tuple[State, tuple[str, ...]]:
    """Returns the state dict inside a checkpoint, and the containers it was in, outermost first.

    Everything beside the state dict (optimizer, options, epoch, ``meta``) is left alone.

    Raises:
        ValueError: There is no state dict, or nothing in it.
    """
    unwrapped: list[str] = []
    containers = (*EMA_CONTAINERS, *_CONTAINERS) if ema else _CONTAINERS
    while True:
        inner = next((key for key in containers if isinstance(weights.get(key), Mapping)), None)
        if inner is None:
            break
        weights = weights[inner]
        unwrapped.append(inner)
    for key, value in weights.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            kind = type(value).__name__
            raise ValueError(
                f"load_published: expected a state dict of tensors, got {kind} under {key!r}; "
                f"wrappings looked into: {', '.join(_CONTAINERS)}"
            )
    if not weights:
        raise ValueError("load_published: the state dict is empty")
    return dict(weights), tuple(unwrapped)


def take_off_prefixes(
    state: State, expected: Iterable[str]
) -> tuple[State, tuple[str, ...], tuple[str, ...]]:
    """Takes off prefixes that the module's own keys, ``expected``, do not have.

    ``backbone.`` need not be on all keys: the rest belongs to other parts of a detector.

    Returns:
        The state dict, the prefixes, and the keys of other parts.
    """
    expected = list(expected)
    stripped: list[str] = []
    ignored: list[str] = []
    while True:
        for prefix in _PREFIXES:
            inside = {k: v for k, v in state.items() if k.startswith(prefix)}
            wanted = any(key.startswith(prefix) for key in expected)
            share = len(inside) / len(state)
            if not wanted and (share == 1 or (prefix == "backbone." and share > 0.5)):
                ignored += [k for k in state if k not in inside]
                state = {k.removeprefix(prefix): v for k, v in inside.items()}
                stripped.append(prefix)
                break
        else:
            return state, tuple(stripped), tuple(ignored)
