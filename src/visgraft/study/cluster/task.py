"""One attempt on a trial, on a machine of a cluster: it trains, and tells the driver.

What it tells are pairs of a word and plain values, in the order in which things happen:

    refused      the machine cannot train this study, and why; the trial is as it was
    environment  versions and machine
    facts        what is known before training
    epoch        its number and its metrics; its checkpoint is safe
    finished     the metrics of every epoch
    failed       the traceback

An attempt that ends without one of ``refused``, ``finished`` and ``failed`` is a dead worker's, or
it found out that another attempt has taken its place.
"""

import json
import logging
import os
import shutil
import tempfile
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from visgraft.data import DataError
from visgraft.study.claims import LostClaimError
from visgraft.study.cluster.storage import Storage, TrialStorage
from visgraft.study.environment import describe_environment
from visgraft.study.errors import StudyError
from visgraft.study.ownership import Owner
from visgraft.study.plan import load_study
from visgraft.study.trial import carry_out, find_spec
from visgraft.tasks.files import write_atomically
from visgraft.tasks.images import RunData, load_images
from visgraft.tasks.recipe import Recipe

__all__ = ["EQUAL_EVERYWHERE", "Job", "run_attempt"]

EQUAL_EVERYWHERE = ("visgraft", "torch", "torchvision", "timm")
"""Versions that must not differ between the machines of a study."""

PATIENCE = 180.0  # seconds: as long as NFS may keep the lock of a machine that lost its power
_ATTEMPT = ".attempt"
_OWNER = ".owner"

Event = tuple[str, Any]


@dataclass(frozen=True)
class Job:
    """What an attempt must know; plain values, since they travel.

    Attributes:
        study: All fields, as JSON.
        variant: Name of the variant.
        seed: Seed of the trial.
        number: How many attempts on the trial there were, this one included.
        token: Tells this attempt from every other.
        fingerprint: Of the images that the study began with.
        environment: Of the driver; versions are among it.
        threads: Of torch.
        gpu: Whether the attempt has one.
        directory: Where relative paths of the recipe begin, if there is such a folder.
        place: The storage, or the study's folder where all machines see it.
        mark: A file that must be there if this machine sees the place.
        folder: Where to train; None trains in a temporary folder and keeps its files in `place`.
        trial: Name of the trial in the storage.
    """

    study: str
    variant: str
    seed: int
    number: int
    token: str
    fingerprint: str
    environment: dict[str, Any]
    threads: int
    gpu: bool
    directory: str
    place: str
    mark: str
    folder: str | None
    trial: str

    @property
    def attempt(self) -> str:
        """A name that sorts by number and that no other attempt has."""
        return f"{self.number:06d}-{self.token[:12]}"


def run_attempt(values: Mapping[str, Any]) -> Iterator[Event]:
    """Trains and yields what there is to tell, as it happens.

    Training runs in a thread of its own, so that each word leaves the process at once.

    Args:
        values: The fields of a `Job`.
    """
    job, events = Job(**values), SimpleQueue[Event | None]()
    threading.Thread(target=_work, args=(job, events), daemon=True).start()
    while (event := events.get()) is not None:
        yield event


class _RefusalError(Exception):
    """This machine cannot train this study."""


def _work(job: Job, events: "SimpleQueue[Event | None]") -> None:
    try:
        torch.set_num_threads(job.threads)
        logging.basicConfig(format="%(asctime)s %(message)s")  # to the trial's log
        logging.getLogger("visgraft").setLevel(logging.INFO)
        recipe, data = _begin(job)
        if job.folder is None:
            _train_away(job, events, recipe, data)
        else:
            _train_in_place(job, events, recipe, data, Path(job.folder))
    except LostClaimError:
        pass
    except _RefusalError as refusal:
        events.put(("refused", str(refusal)))
    except BaseException:  # also what would end a process: this is a thread
        events.put(("failed", traceback.format_exc()))
    finally:
        events.put(None)


def _begin(job: Job) -> tuple[Recipe, RunData]:
    """Finds out whether this machine can do it, and loads what it takes."""
    environment = describe_environment()
    for name in EQUAL_EVERYWHERE:
        if environment[name] != job.environment[name]:
            raise _RefusalError(
                f"has {name} {environment[name]}, the driver {job.environment[name]}; install the "
                "same version on all machines"
            )
    if job.gpu and not torch.cuda.is_available():
        raise _RefusalError("gave the trial a GPU, but torch finds none; install torch with CUDA")
    try:
        if not Storage(job.place).sees(job.mark):
            advice = "give --storage" if job.folder else "give a storage that all machines see"
            raise _RefusalError(f"does not see {job.place}; {advice}")
    except StudyError as error:
        raise _RefusalError(f"cannot use the storage ({error})") from error
    with suppress(OSError):
        os.chdir(job.directory)
    try:
        recipe = find_spec(load_study(json.loads(job.study)), job.variant, job.seed).recipe
    except ValueError as error:
        raise _RefusalError(
            f"cannot build the study ({error}); blocks and networks that your own code registers "
            "are known to your process alone: run with executor='local' and workers=0"
        ) from error
    if recipe.checkpoint and not Path(recipe.checkpoint).is_file():
        raise _RefusalError(f"has no {recipe.checkpoint}; put it there")
    try:
        data = load_images(recipe, False)
    except (DataError, OSError) as error:
        raise _RefusalError(f"cannot load {recipe.data} ({error}); put the data there") from error
    if data.fingerprint != job.fingerprint:
        raise _RefusalError(
            f"has other images in {recipe.data} than the study began with; put the same there"
        )
    return recipe, data


def _train_in_place(
    job: Job, events: "SimpleQueue[Event | None]", recipe: Recipe, data: RunData, folder: Path
) -> None:
    """Trains in the study's folder, which all machines see."""
    fence = _Fence(folder, job)
    recorder = _Recorder(job, events, fence=fence)
    carry_out(recorder, folder, lambda: (recipe, data), log=True, patience=PATIENCE)


def _train_away(
    job: Job, events: "SimpleQueue[Event | None]", recipe: Recipe, data: RunData
) -> None:
    """Trains in a folder of this machine, and keeps its files in the storage."""
    storage = Storage(job.place).trial(job.trial)
    base = Path(tempfile.gettempdir()) / f"visgraft-trials-{os.getuid()}"
    _remove_orphans(base)
    folder = base / job.attempt
    folder.mkdir(parents=True)
    try:
        write_atomically(folder / _OWNER, json.dumps(asdict(Owner.current())).encode())
        storage.restore(folder)
        recorder = _Recorder(job, events, storage=storage, folder=folder)
        carry_out(recorder, folder, lambda: (recipe, data), log=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_orphans(base: Path) -> None:
    """Removes the folders of processes of this machine that were killed."""
    for path in base.glob(f"*/{_OWNER}"):
        with suppress(OSError, ValueError, TypeError):
            owner = Owner(**json.loads(path.read_bytes()))
            if not owner.is_alive(0.0):
                shutil.rmtree(path.parent, ignore_errors=True)


class _Fence:
    """Keeps an attempt that was thought dead from writing into its successor's folder.

    Beside the lock of the folder, which not every network file system has. The later attempt puts
    up its own fence, and the earlier one stops when it sees that: at its next epoch.
    """

    def __init__(self, folder: Path, job: Job) -> None:
        self._path = folder / _ATTEMPT
        self._job = job
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, job.attempt.encode())

    def check(self) -> None:
        """Makes sure that this attempt is still the last.

        Raises:
            LostClaimError: It is not.
        """
        standing = self._path.read_text() if self._path.exists() else ""
        if standing != self._job.attempt:
            raise LostClaimError(
                f"study: {self._job.variant} seed {self._job.seed} was given to another attempt."
            )


class _Recorder:
    """Tells the driver what becomes of the trial, once it is safe.

    Args:
        job: The attempt's.
        events: To the driver.
        fence: Of the folder, where it is shared.
        storage: Where files are kept, where it is not.
        folder: Those files.
    """

    def __init__(
        self,
        job: Job,
        events: "SimpleQueue[Event | None]",
        *,
        fence: _Fence | None = None,
        storage: TrialStorage | None = None,
        folder: Path | None = None,
    ) -> None:
        self.variant = job.variant
        self.seed = job.seed
        self._attempt = job.attempt
        self._events = events
        self._fence = fence
        self._storage = storage
        self._folder = folder

    def heartbeat(self) -> None:
        """Looks whether another attempt has taken over; Ray itself tells who lives."""
        if self._fence:
            self._fence.check()

    def record_environment(self, facts: Mapping[str, Any]) -> None:
        """Tells the versions and the machine."""
        self._events.put(("environment", dict(facts)))

    def record_facts(self, facts: Mapping[str, Any]) -> None:
        """Tells what is known before training."""
        self._events.put(("facts", dict(facts)))

    def record_epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Makes the checkpoint safe and tells the metrics."""
        self.heartbeat()
        self._save(epoch, finished=False)
        self._events.put(("epoch", (epoch, dict(metrics))))

    def finish(self, metrics: Mapping[int, Mapping[str, float]]) -> None:
        """Makes the result safe and tells the metrics of every epoch."""
        self.heartbeat()
        self._save(max(metrics), finished=True)
        self._events.put(("finished", {epoch: dict(row) for epoch, row in metrics.items()}))

    def fail(self, error: str) -> None:
        """Tells the traceback."""
        self._events.put(("failed", error))

    def release(self) -> None:
        """Tells nothing: the driver misses the end."""

    def _save(self, epoch: int, *, finished: bool) -> None:
        if self._storage and self._folder:
            self._storage.save(self._folder, self._attempt, epoch, finished=finished)
