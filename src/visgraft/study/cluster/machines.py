"""The cluster that Ray makes of some machines: the way to it, and the room for trials there."""

import logging
import os
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from visgraft.study.errors import StudyError
from visgraft.tasks.recipe import Recipe

__all__ = ["Machine", "RayCluster", "Share", "connect", "gpus_per_trial"]

ANSWER_SECONDS = 5.0

_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_HTTP2_SETTINGS = 4


@dataclass(frozen=True)
class Share:
    """What one trial takes of a machine.

    Args:
        threads: CPUs, and threads of torch.
        gpus: A whole number, or a part of one.
    """

    threads: int
    gpus: float

    def __str__(self) -> str:
        return _amount(self.threads, self.gpus)


@dataclass(frozen=True)
class Machine:
    """A living node of the cluster.

    Args:
        node: Ray's name for it.
        address: Where it is in the network.
        cpus: That it has, busy or not.
        gpus: Likewise.
    """

    node: str
    address: str
    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"{self.address} with {_amount(self.cpus, self.gpus)}"

    def room(self, share: Share) -> int:
        """Returns how many trials of that size it can run at a time."""
        room = int(self.cpus / share.threads + 1e-6)
        return min(room, int(self.gpus / share.gpus + 1e-6)) if share.gpus else room


class RayCluster:
    """A cluster that this process is connected to."""

    def machines(self, without: Collection[str] = ()) -> list[Machine]:
        """Returns the nodes that are alive, but those named."""
        import ray

        return [
            Machine(
                node["NodeID"],
                node["NodeManagerAddress"],
                node["Resources"].get("CPU", 0.0),
                node["Resources"].get("GPU", 0.0),
            )
            for node in ray.nodes()
            if node["Alive"] and node["NodeID"] not in without
        ]

    def usual_threads(self, trials: int) -> int:
        """Returns the threads per trial that leave few CPUs idle, at least 1.

        Args:
            trials: How many there are.
        """
        machines = self.machines()
        fair = int(sum(machine.cpus for machine in machines)) // trials
        return max(1, min(fair, int(max(machine.cpus for machine in machines))))

    def check_room(self, share: Share) -> None:
        """Makes sure that some machine can run a trial.

        Raises:
            StudyError: None has what a trial asks for.
        """
        machines = self.machines()
        if any(machine.room(share) for machine in machines):
            return
        largest = max(machines, key=lambda machine: (machine.gpus, machine.cpus))
        raise StudyError(
            f"study: a trial asks for {share}, and no machine of the cluster has that (the largest "
            f"is {largest}); lower --threads or --gpus, or add a machine with 'ray start'."
        )


def gpus_per_trial(recipe: Recipe, wanted: float | None, cluster: RayCluster) -> float:
    """Returns how many GPUs a trial takes.

    Args:
        recipe: What it trains, and whether it may use a GPU.
        wanted: By the user; None takes as many as the recipe has devices, where it may use them
            and the cluster has some.
        cluster: Where it trains.

    Raises:
        StudyError: Recipe and wish do not fit, or it is more than a trial can use.
    """
    if wanted is None:
        has_some = any(machine.gpus for machine in cluster.machines())
        uses_some = recipe.device == "cuda" or (recipe.device == "auto" and has_some)
        return float(recipe.devices) if uses_some else 0.0
    if recipe.devices > 1 and wanted not in (0, recipe.devices):
        raise StudyError(
            f"study: a trial trains on {recipe.devices} GPUs (devices: {recipe.devices}), so gpus "
            f"must be {recipe.devices}, got {wanted:g}."
        )
    if recipe.devices == 1 and not 0 <= wanted <= 1:
        raise StudyError(
            f"study: a trial trains on one GPU, or shares one with others; gpus must be from 0 to "
            f"1, got {wanted:g}; for several GPUs per trial set devices of the recipe."
        )
    if wanted and recipe.device == "cpu":
        raise StudyError(
            f"study: the recipe trains on the CPU (device: cpu), so gpus must be 0, got {wanted:g}."
        )
    if not wanted and recipe.device == "cuda":
        raise StudyError(
            "study: the recipe trains on a GPU (device: cuda), so gpus must be more than 0."
        )
    return wanted


@contextmanager
def connect(address: str) -> Iterator[RayCluster]:
    """Connects this process with a cluster as long as its body runs.

    A connection that the caller has made already is used, and stays.

    Args:
        address: ``HOST:PORT`` of the head node, ``"auto"`` for the cluster that this machine
            belongs to, or ``"local"`` for one of this machine alone that ends with the body.

    Raises:
        StudyError: Ray is not installed, or no cluster answers.
    """
    try:
        import ray
    except ImportError:
        raise StudyError(
            "study: the executor ray needs Ray; install it with: pip install 'visgraft[ray]'."
        ) from None
    with nullcontext() if ray.is_initialized() else _connected(ray, address):
        yield RayCluster()


@contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    from ray.exceptions import RayError

    _check_answer(address)
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=False if address == "local" else None,
        )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, RayError) as error:
        raise StudyError(
            f"study: the Ray cluster at {address} does not take this machine in "
            f"({' '.join(str(error).split())}); if it asks for a token, copy ~/.ray/auth_token of "
            "its head to this machine and set RAY_AUTH_MODE=token."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_answer(address: str) -> None:
    """Makes sure that there is a cluster, since Ray would wait for minutes and say nothing."""
    from ray._private.services import canonicalize_bootstrap_address_or_die

    if "://" in address:
        raise StudyError(
            f"study: {address} is an address for Ray Client; run the study on a machine of the "
            "cluster, with --address auto or HOST:PORT of the head node."
        )
    if address == "local":
        return
    try:
        host, _, port = canonicalize_bootstrap_address_or_die(address).rpartition(":")
    except (ConnectionError, ValueError) as error:
        raise _no_cluster(address, str(error)) from None
    try:
        with socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS) as line:
            if os.environ.get("RAY_USE_TLS", "0") == "0" and not _speaks_http2(line):
                raise ConnectionError("something else than Ray listens there")
    except (OSError, ValueError) as error:
        raise _no_cluster(address, f"{host}:{port}: {error}") from None


def _speaks_http2(line: socket.socket) -> bool:
    """Tells whether the other end greets as a Ray head does."""
    line.settimeout(ANSWER_SECONDS)
    line.sendall(_HTTP2_HELLO)
    frame = line.recv(9)
    return len(frame) >= 4 and frame[3] == _HTTP2_SETTINGS


def _no_cluster(address: str, why: str) -> StudyError:
    return StudyError(
        f"study: no Ray cluster answers at {address} ({' '.join(why.split())}); start one with "
        "'ray start --head', or give the HOST:PORT that it printed as --address."
    )


def _amount(cpus: float, gpus: float) -> str:
    text = f"{cpus:g} CPU{'' if cpus == 1 else 's'}"
    return f"{text} and {gpus:g} GPU{'' if gpus == 1 else 's'}" if gpus else text
