"""Every block trains in two processes as in one: gloo, on this machine."""

import copy
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from tests.blocks.test_contract import CASES

RANKS = 2
STEPS = 2  # a parameter without gradient stops the second
RATE = 1e-3
TIMEOUT = 240  # seconds


@pytest.mark.slow
def test_gradients_are_the_mean_over_the_processes(tmp_path):
    """Also in training mode, where each process normalises by the statistics of its half."""
    results = _train_in_processes(tmp_path)
    for case in CASES:
        by_rank = [result[str(case)] for result in results]
        for name, value in by_rank[0]["parameters"].items():
            assert torch.equal(value, by_rank[1]["parameters"][name]), f"{case}: {name}"
        module = case.build().double().train()
        for step in range(STEPS):
            expected = _one_step(module, [_half(case, rank) for rank in range(RANKS)])
            for rank in range(RANKS):
                _assert_close(by_rank[rank]["gradients"][step], expected, f"{case}, step {step}")
        _assert_close(by_rank[0]["parameters"], dict(module.named_parameters()), str(case))
        _assert_close(by_rank[0]["buffers"], dict(module.named_buffers()), str(case))


def _one_step(module: nn.Module, halves: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Takes a step by the mean of the gradients of the halves, which it returns.

    Statistics are those of the first half, as of the first process.
    """
    copies = [copy.deepcopy(module) for _ in halves]
    for each, x in zip(copies, halves, strict=True):
        each.zero_grad()
        each(x).square().mean().backward()
    parts, gradients = [_gradients(each) for each in copies], {}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            gradients[name] = torch.stack([each[name] for each in parts]).mean(0)
            parameter -= RATE * gradients[name]
        for name, buffer in module.named_buffers():
            buffer.copy_(copies[0].get_buffer(name))
    return gradients


def _gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    gradients = {name: p.grad for name, p in module.named_parameters()}
    return {name: gradient.clone() for name, gradient in gradients.items() if gradient is not None}


def _assert_close(actual, expected, where):
    assert actual.keys() == expected.keys()
    detached = {name: value.detach() for name, value in expected.items()}
    # In float64: another order of adding up
    assert_close(actual, detached, rtol=1e-9, atol=1e-12, msg=lambda text: f"{where}: {text}")


def _half(case, rank):
    return case.input(2 * RANKS).double().chunk(RANKS)[rank]


def _train_in_processes(folder: Path) -> list[dict]:
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, str(Path(root, "src")), os.environ.get("PYTHONPATH", "")])
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    environment = {**os.environ, "PYTHONPATH": path, "GLOO_SOCKET_IFNAME": loopback}
    command = [sys.executable, "-W", "error", "-m", __name__, str(folder)]
    processes, logs = [], [folder / f"{rank}.log" for rank in range(RANKS)]
    try:
        for rank, log in enumerate(logs):
            with log.open("w") as stream:
                process = subprocess.Popen(
                    [*command, str(rank)], cwd=root, env=environment, stdout=stream, stderr=stream
                )
            processes.append(process)
        codes = [process.wait(TIMEOUT) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0] * RANKS, "\n".join(log.read_text() for log in logs)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


def _train(folder: Path, rank: int) -> None:
    """Trains each case; a file instead of a port, because a free port may be taken meanwhile."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'store'}",
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(seconds=TIMEOUT / 2),
    )
    results = {}
    for case in CASES:
        module = case.build().double().train()
        parallel = DistributedDataParallel(module, find_unused_parameters=False)
        gradients = []
        for _ in range(STEPS):
            parallel.zero_grad()
            parallel(_half(case, rank)).square().mean().backward()
            gradients.append(_gradients(module))
            with torch.no_grad():
                for name, parameter in module.named_parameters():
                    parameter -= RATE * gradients[-1][name]
        results[str(case)] = {
            "gradients": gradients,
            "parameters": {n: p.detach() for n, p in module.named_parameters()},
            "buffers": dict(module.named_buffers()),
        }
    torch.save(results, folder / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    _train(Path(sys.argv[1]), int(sys.argv[2]))
