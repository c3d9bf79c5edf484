"""Measuring without a trace: what a call changes on the way is put back."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["keeping_model", "keeping_process"]


@contextmanager
def keeping_process(threads: int | None, device: torch.device) -> Iterator[None]:
    """Sets the threads of torch for what is inside, and puts them and the random states back."""
    had_threads, state = torch.get_num_threads(), random.getstate()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        try:
            if threads is not None:
                torch.set_num_threads(threads)
            yield
        finally:
            torch.set_num_threads(had_threads)
            random.setstate(state)


@contextmanager
def keeping_model(model: nn.Module) -> Iterator[None]:
    """Puts back the mode of every module and the value of every buffer."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer
                if buffer is not None and value is not None:
                    buffer.copy_(value)
