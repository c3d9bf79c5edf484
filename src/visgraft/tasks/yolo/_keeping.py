"""Lets ultralytics' trainer train a grafted model.

The trainer builds its own network from the YAML and copies weights into it by name, in
``BaseModel.load``; grafts would stay behind without a word. Once this bridge is in place, ``load``
first gives the network the grafted layers. A grafted model carries a record, so that loading its
checkpoint puts the bridge in place too.
"""

import copy
from collections.abc import Iterable
from functools import wraps
from typing import Any

from torch import nn

from visgraft.surgery._apart import KeptApart
from visgraft.surgery.holders import Holder
from visgraft.tasks.yolo._exporting import teach_exporter
from visgraft.tasks.yolo._library import ultralytics_module
from visgraft.tasks.yolo._offline import ask_no_host

__all__ = ["GraftRecord", "grafted_rows", "keep_grafts", "note_grafts"]

RECORD = "visgraft_grafts"
WRAPPED = "visgraft_original"
CLASS_BRANCHES = ("cv3", "one2one_cv3")


class GraftRecord:
    """The paths of the grafts of an ultralytics model; it rides in the model's checkpoints."""

    def __init__(self, paths: Iterable[str] = ()) -> None:
        self.paths = list(paths)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        keep_grafts()


def note_grafts(model: nn.Module, paths: Iterable[str]) -> None:
    """Writes down where a model was grafted."""
    known = vars(model).get(RECORD, GraftRecord()).paths
    setattr(model, RECORD, GraftRecord(dict.fromkeys([*known, *paths])))


def grafted_rows(model: nn.Module) -> list[int]:
    """Returns the indices of the rows of ``model.model`` in which there are grafts."""
    modules = dict(model.named_modules())
    paths = [p for p, m in modules.items() if isinstance(m, (Holder, KeptApart))]
    paths += [p for p in vars(model).get(RECORD, GraftRecord()).paths if p in modules]
    return sorted({int(p.split(".")[1]) for p in paths if p.startswith("model.")})


def keep_grafts() -> None:
    """Puts the bridge in place; again is no change."""
    tasks = ultralytics_module("keep_grafts", "nn.tasks")
    engine = ultralytics_module("keep_grafts", "engine.model")
    teach_exporter()
    ask_no_host()
    if not hasattr(tasks.BaseModel.load, WRAPPED):
        tasks.BaseModel.load = _keeping_load(tasks)
    if not hasattr(engine.Model.train, WRAPPED):
        engine.Model.train = _keeping_train(engine)


def _keeping_load(tasks: Any) -> Any:
    original = tasks.BaseModel.load

    @wraps(original)
    def load(self: Any, weights: Any, verbose: bool = True) -> None:
        source = weights
        if isinstance(weights, dict):
            source = weights.get("ema") or weights["model"]
        if isinstance(source, tasks.BaseModel) and source is not self:
            _take_grafts(self, source)
        original(self, weights, verbose)

    setattr(load, WRAPPED, original)
    return load


def _keeping_train(engine: Any) -> Any:
    original = engine.Model.train

    @wraps(original)
    def train(self: Any, trainer: Any = None, **kwargs: Any) -> Any:
        if isinstance(self.model, nn.Module) and grafted_rows(self.model):
            pretrained = kwargs.get("pretrained", self.overrides.get("pretrained", True))
            if pretrained is not True:
                raise ValueError(
                    f"train: pretrained={pretrained!r} builds the network anew without its grafts; "
                    "leave it out, and graft the model that has the weights to start from"
                )
            if not self.ckpt:  # else the trainer would begin from the YAML alone
                self.ckpt = {"model": self.model}
        return original(self, trainer, **kwargs)

    setattr(train, WRAPPED, original)
    return train


def _take_grafts(model: Any, source: Any) -> None:
    """Gives ``model`` copies of the rows of ``source`` in which there are grafts."""
    rows = grafted_rows(source)
    if not rows:
        return
    have = [(type(m).__name__, getattr(m, "f", None)) for m in model.model]
    lacks = [r for r in rows if r >= len(have) or have[r][1] != source.model[r].f]
    if len(model.model) != len(source.model) or lacks:
        raise ValueError(
            f"load: the weights have grafts in layers {', '.join(map(str, rows))}, and come from "
            "another network than the one that is to load them; use that network's own YAML, or "
            "undo the grafts before saving"
        )
    copies = {row: _copied(model.model[row], source.model[row], row) for row in rows}
    for row, layer in copies.items():
        model.model[row] = layer
    note_grafts(model, vars(source).get(RECORD, GraftRecord()).paths)


def _copied(own: nn.Module, theirs: nn.Module, row: int) -> nn.Module:
    """Returns a copy of ``theirs`` for the place of ``own``, with as many classes."""
    clone = copy.deepcopy(theirs).float()
    classes = getattr(own, "nc", None)
    if classes is not None and classes != getattr(theirs, "nc", None):
        _set_classes(clone, own, row)
    else:
        have, wanted = clone.state_dict(), own.state_dict()
        misfits = [n for n, t in wanted.items() if n in have and have[n].shape != t.shape]
        if classes is not None:  # ultralytics lets a head keep the width it had with more classes
            misfits = [n for n in misfits if n.partition(".")[0] not in CLASS_BRANCHES]
        if misfits:
            raise ValueError(
                f"load: layer {row} has grafts and other shapes than the network that is to load "
                f"it ({misfits[0]}: {tuple(have[misfits[0]].shape)}, not "
                f"{tuple(wanted[misfits[0]].shape)}); graft that network instead"
            )
    for parameter in clone.parameters():
        parameter.requires_grad_(True)
    for name, parameter in own.named_parameters():
        if not parameter.requires_grad and name in dict(clone.named_parameters()):
            clone.get_parameter(name).requires_grad_(False)
    first = next(own.parameters(), None)
    if first is not None:
        clone.to(first.device, first.dtype)
    return clone.train(own.training)


def _set_classes(head: Any, own: Any, row: int) -> None:
    """Gives a head as many classes as ``own`` has; their last convolutions begin anew."""
    before = head.nc
    branches = [getattr(head, name, None) for name in CLASS_BRANCHES]
    sequences = [s for branch in branches if branch is not None for s in branch]
    lasts = [s[-1] for s in sequences]
    plain = all(type(c) is nn.Conv2d and c.out_channels == before for c in lasts)
    if not lasts or not plain or not hasattr(head, "bias_init"):
        raise ValueError(
            f"load: layer {row} is a {type(head).__name__} with grafts for {before} classes, the "
            f"data have {own.nc}; graft the other layers only, or a model of {own.nc} classes"
        )
    for sequence in sequences:
        sequence[-1] = nn.Conv2d(sequence[-1].in_channels, own.nc, 1)
    head.nc, head.no, head.stride = own.nc, own.no, own.stride
    head.bias_init()
