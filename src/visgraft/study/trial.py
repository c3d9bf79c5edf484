"""One trial, from its claim to its record."""

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path

from visgraft.study.claims import Claim, LostClaimError
from visgraft.study.environment import describe_environment
from visgraft.study.errors import StudyError
from visgraft.study.facts import check_pairing, gather_facts, open_images
from visgraft.study.heartbeats import heartbeats
from visgraft.study.plan import Study, TrialSpec, trial_spec
from visgraft.study.recorder import Recorder
from visgraft.tasks.errors import TrainingError
from visgraft.tasks.files import locked
from visgraft.tasks.images import RunData
from visgraft.tasks.recipe import Recipe
from visgraft.tasks.training import train

__all__ = ["LOG", "carry_out", "find_spec", "work_on"]

_logger = logging.getLogger(__name__)

LOG = "log.txt"
LOCK_SECONDS = 30.0


def work_on(claim: Claim, on_epoch: Callable[[], None] | None = None, *, log: bool = False) -> None:
    """Trains a claimed trial and records what became of it.

    An error of the trial is recorded with its traceback; an interruption gives the trial back.

    Args:
        claim: The trial.
        on_epoch: Called after each epoch.
        log: Whether everything this process prints goes to the trial's log meanwhile.
    """
    store = claim.store

    def begin() -> tuple[Recipe, RunData]:
        recipe = find_spec(store.study, claim.variant, claim.seed).recipe
        return recipe, open_images(store, recipe)

    carry_out(
        claim,
        store.trial_folder(claim.variant, claim.seed),
        begin,
        on_facts=lambda: check_pairing(store.study, store.peers(claim.variant, claim.seed)),
        on_epoch=on_epoch,
        log=log,
    )


def carry_out(
    recorder: Recorder,
    folder: Path,
    begin: Callable[[], tuple[Recipe, RunData]],
    *,
    on_facts: Callable[[], None] | None = None,
    on_epoch: Callable[[], None] | None = None,
    log: bool = False,
    patience: float = LOCK_SECONDS,
) -> None:
    """Trains a trial in a folder and reports what became of it.

    Args:
        recorder: Where to.
        folder: Of the trial; made if it is not there.
        begin: Returns the recipe and its images; an error there is one of the trial.
        on_facts: Called once the facts are recorded; an error there is one of the trial.
        on_epoch: Called after each epoch.
        log: Whether everything this process prints goes to the folder's log meanwhile.
        patience: Seconds to wait for a process that still trains in the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        logged = _logged_to(folder / LOG) if log else nullcontext()
        with logged, heartbeats(recorder.heartbeat), _noted(recorder):
            recipe, data = begin()
            _train(recorder, recipe, data, folder, on_facts, on_epoch, patience)
    except LostClaimError:
        return
    except Exception:
        with suppress(LostClaimError):
            recorder.fail(traceback.format_exc())
    except BaseException:
        with suppress(LostClaimError):
            recorder.release()
        raise


def _train(
    recorder: Recorder,
    recipe: Recipe,
    data: RunData,
    folder: Path,
    on_facts: Callable[[], None] | None,
    on_epoch: Callable[[], None] | None,
    patience: float,
) -> None:
    recorder.record_environment(describe_environment())
    facts = gather_facts(recipe, data)
    recorder.record_facts(asdict(facts))
    if on_facts:
        on_facts()

    def record(row: dict[str, float]) -> None:
        _logger.info(", ".join(f"{name} {value:.6g}" for name, value in row.items()))
        recorder.record_epoch(*_split(row))
        if on_epoch:
            on_epoch()

    _wait_until_free(folder, patience)
    result = train(recipe, folder, progress=False, on_epoch=record, keep="last", data=data)
    if result.data_order != facts.order_digest:
        raise StudyError(
            f"study: {folder} was trained with the images in another order than the study's; was "
            "visgraft changed in between? Start the study in a new folder."
        )
    recorder.finish(dict(map(_split, result.metrics)))


def _wait_until_free(folder: Path, patience: float) -> None:
    """Waits for what a killed worker left running: its loader's processes still hold the folder."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        with suppress(TrainingError), locked(folder):
            return
        time.sleep(0.5)


def _split(row: dict[str, float]) -> tuple[int, dict[str, float]]:
    """Splits a row of training into the number of the epoch, from 1, and its metrics."""
    return int(row["epoch"]), {name: value for name, value in row.items() if name != "epoch"}


def find_spec(study: Study, variant: str, seed: int) -> TrialSpec:
    """Returns what a trial trains.

    Raises:
        StudyError: It is a control whose width is still to be found.
    """
    control = study.controls.get(variant)
    if control and control.is_open:
        raise StudyError(f"study: the width of {variant} is not known yet; run the study again.")
    return trial_spec(study, variant, seed)


@contextmanager
def _noted(trial: Recorder) -> Iterator[None]:
    """Writes beginning and end of a trial to the log."""
    _logger.info("%s seed %d taken up by process %d", trial.variant, trial.seed, os.getpid())
    try:
        yield
    except BaseException:
        _logger.info("stopped", exc_info=True)
        raise
    _logger.info("finished")


@contextmanager
def _logged_to(path: Path) -> Iterator[None]:
    """Sends standard output and error, of libraries in C, too, to a file."""
    streams = (sys.stdout, sys.stderr)
    kept = [os.dup(stream.fileno()) for stream in streams]
    with path.open("ab") as file:
        try:
            for stream in streams:
                stream.flush()
                os.dup2(file.fileno(), stream.fileno())
            yield
        finally:
            for stream, number in zip(streams, kept, strict=True):
                with suppress(OSError):  # a full disk costs lines of the log, not the trial
                    stream.flush()
                os.dup2(number, stream.fileno())
                os.close(number)
