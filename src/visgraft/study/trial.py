"""One trial, from its claim to its record."""

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path

from visgraft.study.claims import HEARTBEAT_SECONDS, Claim, LostClaimError
from visgraft.study.environment import describe_environment
from visgraft.study.errors import StudyError
from visgraft.study.facts import check_pairing, gather_facts, open_images
from visgraft.study.plan import Study, TrialSpec, trials
from visgraft.tasks.errors import TrainingError
from visgraft.tasks.files import locked
from visgraft.tasks.training import train

__all__ = ["work_on"]

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
    folder = claim.store.trial_folder(claim.variant, claim.seed)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _logged_to(folder / LOG) if log else nullcontext(), _heartbeats(claim), _noted(claim):
            _train(claim, folder, on_epoch)
    except LostClaimError:
        return
    except Exception:
        with suppress(LostClaimError):
            claim.fail(traceback.format_exc())
    except BaseException:
        with suppress(LostClaimError):
            claim.release()
        raise


def _train(claim: Claim, folder: Path, on_epoch: Callable[[], None] | None) -> None:
    study = claim.store.study
    spec = _spec(study, claim)
    data = open_images(claim.store, spec.recipe)
    claim.record_environment(describe_environment())
    facts = gather_facts(spec.recipe, data)
    claim.record_facts(asdict(facts))
    check_pairing(study, claim.store.trials())

    def record(row: dict[str, float]) -> None:
        _logger.info(", ".join(f"{name} {value:.6g}" for name, value in row.items()))
        claim.record_epoch(*_split(row))
        if on_epoch:
            on_epoch()

    _wait_until_free(folder)
    result = train(spec.recipe, folder, progress=False, on_epoch=record, keep="last", data=data)
    if result.data_order != facts.order_digest:
        raise StudyError(
            f"study: {folder} was trained with the images in another order than the study's; was "
            "visgraft changed in between? Start the study in a new folder."
        )
    claim.finish(dict(map(_split, result.metrics)))


def _wait_until_free(folder: Path) -> None:
    """Waits for what a killed worker left running: its loader's processes still hold the folder."""
    end = time.monotonic() + LOCK_SECONDS
    while time.monotonic() < end:
        with suppress(TrainingError), locked(folder):
            return
        time.sleep(0.5)


def _split(row: dict[str, float]) -> tuple[int, dict[str, float]]:
    """Splits a row of training into the number of the epoch, from 1, and its metrics."""
    return int(row["epoch"]), {name: value for name, value in row.items() if name != "epoch"}


def _spec(study: Study, claim: Claim) -> TrialSpec:
    wanted = (claim.variant, claim.seed)
    control = study.controls.get(claim.variant)
    if control and control.is_open:
        raise StudyError(
            f"study: the width of {claim.variant} is not known yet; run the study again."
        )
    return next(spec for spec in trials(study) if (spec.variant, spec.seed) == wanted)


@contextmanager
def _noted(claim: Claim) -> Iterator[None]:
    """Writes beginning and end of a trial to the log."""
    _logger.info("%s seed %d taken up by process %d", claim.variant, claim.seed, os.getpid())
    try:
        yield
    except BaseException:
        _logger.info("stopped", exc_info=True)
        raise
    _logger.info("finished")


@contextmanager
def _heartbeats(claim: Claim) -> Iterator[None]:
    """Shows signs of life from a thread of its own."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            try:
                claim.heartbeat()
            except LostClaimError:
                return  # the next epoch's record finds out, too
            except StudyError:
                continue  # a disk that is full or away for a moment

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


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
                stream.flush()
                os.dup2(number, stream.fileno())
                os.close(number)
