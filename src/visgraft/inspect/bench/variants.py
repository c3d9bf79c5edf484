"""A case in another dtype or memory layout, or through the compiler, beside what it was before."""

import warnings
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor

from visgraft.inspect.bench.cases import STEPS, Case, Form

__all__ = ["converted", "graph_breaks", "with_compiled"]


def converted(case: Case, dtype: torch.dtype, *, channels_last: bool = False) -> Case:
    """Moves tensors and modules to a dtype and, with maps, to ``channels_last``.

    Our form and the baseline are kept as they were, too, as forms of their own: ``visgraft,
    contiguous`` beside ``visgraft`` for another layout, ``visgraft, float32`` for another dtype.
    Another layout must not change what is computed.
    """

    def laid_out(tensor: Tensor) -> Tensor:
        tensor = tensor.to(dtype)
        if channels_last and tensor.ndim == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        return tensor

    before = ["contiguous"] * channels_last + ["float32"] * (dtype != torch.float32)
    forms = dict(case.forms)
    kept = dict.fromkeys((case.baseline, case.ours or case.baseline)) if before else {}
    for name in kept:
        form = case.forms.get(name)
        if form is None or not (form.module is None or form.run is form.module):
            continue
        module = deepcopy(form.module)
        forms[f"{name}, {' '.join(before)}"] = replace(
            form,
            run=form.run if module is None else module,
            module=module,
            same_as=name if dtype == torch.float32 else None,
            tensors=case.tensors,
        )
    for form in case.forms.values():
        if form.module is not None:
            form.module.to(dtype)
            if channels_last:
                form.module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return replace(case, forms=forms, tensors=tuple(map(laid_out, case.tensors)))


def with_compiled(case: Case) -> Case:
    """Adds the compiled form of ours and of the one that circulates, which compute the same."""
    compiled = {
        f"{name}, compiled": replace(form, run=torch.compile(form.run, dynamic=False), same_as=name)
        for name, form in case.forms.items()
        if name in (case.ours, "circulating")
    }
    return replace(case, forms={**case.forms, **compiled})


def graph_breaks(form: Form, tensors: tuple[Tensor, ...], step: str) -> int:
    """Returns how often the compiler would leave its graph for Python in a step.

    What is compiled already is forgotten.
    """
    if form.module is not None:
        form.module.train(step != STEPS[0])
    with torch.set_grad_enabled(step != STEPS[0]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"The \.grad attribute of a Tensor that is not a leaf")
        return torch._dynamo.explain(form.run)(*tensors).graph_break_count
