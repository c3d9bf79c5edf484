"""Who may work on which trial: claims, signs of life, and what becomes of a dead worker's trial.

A claim carries a token. Whatever its holder writes is written only while the trial still bears that
token, so a worker that was thought dead (a laptop that slept) cannot spoil its successor's record.
"""

import json
import math
import sqlite3
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from visgraft.study.errors import StudyError
from visgraft.study.ownership import Owner
from visgraft.study.store import Store

__all__ = [
    "HEARTBEAT_SECONDS",
    "MAX_CRASHES",
    "Claim",
    "LostClaimError",
    "busy_processes",
    "claim_next",
    "reopen",
    "sweep",
]

HEARTBEAT_SECONDS = 15.0
MAX_CRASHES = 3
"""Deaths of a worker on one trial, without an epoch finished in between, that make it failed."""


class LostClaimError(StudyError):
    """The trial was given to another process, or its record is gone."""


@dataclass
class Claim:
    """The right to work on a trial and to write its record.

    Attributes:
        store: Where the trial is recorded.
        trial: Its row.
        variant: Name of the variant.
        seed: Seed of the trial.
        token: Proof of the right.
        attempt: How often the trial was taken up by now.
    """

    store: Store
    trial: int
    variant: str
    seed: int
    token: str
    attempt: int = 1

    def __post_init__(self) -> None:
        self._seen = time.monotonic()
        self._lock = threading.Lock()

    def start_clock(self) -> None:
        """Lets the time spent on the trial begin now, for one that had to wait for a machine."""
        self._seen = time.monotonic()

    def heartbeat(self) -> None:
        """Shows that the holder lives and adds the time since the last sign of life."""
        self._write()

    def record_facts(self, facts: Mapping[str, Any]) -> None:
        """Writes what is known before training: params, macs, init_digest, order_digest."""
        self._write(**facts)

    def record_environment(self, facts: Mapping[str, Any]) -> None:
        """Writes the versions and the machine that the trial runs with."""
        text = json.dumps(facts, sort_keys=True)
        with self.store.transaction(write=True) as connection:
            connection.execute("INSERT OR IGNORE INTO environments (facts) VALUES (?)", (text,))
            connection.execute(
                "UPDATE trials SET environment = (SELECT id FROM environments WHERE facts = ?)"
                " WHERE id = ? AND token = ?",
                (text, self.trial, self.token),
            )

    def record_epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of an epoch; the same epoch again replaces them."""
        self._write({epoch: metrics}, crashes=0)

    def finish(self, metrics: Mapping[int, Mapping[str, float]]) -> None:
        """Marks the trial as finished.

        Args:
            metrics: Of every epoch; the last one's become the result.
        """
        final = json.dumps(dict(metrics[max(metrics)]))
        self._end(metrics, status="finished", result=final, error=None)

    def fail(self, error: str) -> None:
        """Marks the trial as failed, with the traceback or the reason."""
        self._end({}, status="failed", error=error)

    def release(self) -> None:
        """Gives the trial back unfinished; whoever claims it next goes on from its checkpoint."""
        self._write(status="waiting", token=None)

    def crash(self, reason: str) -> None:
        """Frees the trial of a worker that died; ``MAX_CRASHES`` in a row make it failed.

        Args:
            reason: What is known of the death, a sentence.
        """
        with self.store.transaction(write=True) as connection:
            row = connection.execute(
                "SELECT crashes + 1 FROM trials WHERE id = ? AND token = ?",
                (self.trial, self.token),
            ).fetchone()
            if row:
                _bury(connection, self.trial, row[0], reason)

    def _end(self, metrics: Mapping[int, Mapping[str, float]], **columns: Any) -> None:
        self._write(metrics, finished=time.time(), token=None, **columns)

    def _write(
        self, metrics: Mapping[int, Mapping[str, float]] | None = None, **columns: Any
    ) -> None:
        """Changes the trial's row, and adds metrics by epoch, if the claim still holds."""
        with self._lock, self.store.transaction(write=True) as connection:
            now = time.monotonic()
            names = "".join(f", {name} = :{name}" for name in columns)
            changed = connection.execute(
                f"UPDATE trials SET heartbeat = :_now, seconds = seconds + :_spent{names}"
                " WHERE id = :_trial AND token = :_token",
                {
                    "_now": time.time(),
                    "_spent": now - self._seen,
                    "_trial": self.trial,
                    "_token": self.token,
                    **columns,
                },
            ).rowcount
            if not changed:
                raise LostClaimError(
                    f"study: {self.variant} seed {self.seed} was given to another process."
                )
            self._seen = now
            if metrics:
                connection.executemany(
                    "INSERT OR REPLACE INTO metrics VALUES (?, ?, ?, ?)",
                    [
                        (self.trial, epoch, name, None if math.isnan(value) else float(value))
                        for epoch, values in metrics.items()
                        for name, value in values.items()
                    ],
                )
                connection.execute(
                    "UPDATE trials SET epochs ="
                    " (SELECT COUNT(DISTINCT epoch) FROM metrics WHERE trial = id) WHERE id = ?",
                    (self.trial,),
                )


def claim_next(store: Store, owner: Owner | None = None) -> Claim | None:
    """Takes the next waiting trial; None if there is none.

    Args:
        store: The study.
        owner: In whose name; this process by default.
    """
    owner = owner or Owner.current()
    token = uuid4().hex
    with store.transaction(write=True) as connection:
        row = connection.execute(
            "SELECT id, variant, seed, attempts FROM trials WHERE status = 'waiting'"
            " ORDER BY position LIMIT 1"
        ).fetchone()
        if row is None:
            return None
        trial, variant, seed, attempts = row
        now = time.time()
        connection.execute(
            "UPDATE trials SET status = 'running', attempts = attempts + 1, token = ?, host = ?,"
            " pid = ?, born = ?, heartbeat = ?, started = COALESCE(started, ?), error = NULL"
            " WHERE id = ?",
            (token, owner.host, owner.pid, owner.born, now, now, trial),
        )
    return Claim(store, trial, variant, seed, token, attempts + 1)


def reopen(store: Store) -> None:
    """Frees what a new run may take up: trials that failed or whose owners are gone.

    A trial of this very process is one that an interruption left behind.
    """
    me = Owner.current()
    with store.transaction(write=True) as connection:
        for trial, owner, age, _ in _running(connection):
            if owner == me or not owner.is_alive(age):
                _free(connection, trial)
        connection.execute(
            "UPDATE trials SET status = 'waiting', crashes = 0 WHERE status = 'failed'"
        )
        connection.execute(  # as long as nothing was trained, nothing is settled
            "DELETE FROM meta WHERE key <> 'study'"
            " AND NOT EXISTS (SELECT 1 FROM trials WHERE attempts > 0)"
        )


def sweep(store: Store, *, blame: bool = True) -> None:
    """Frees the trials whose owners are dead, so that they are taken up again.

    Args:
        store: The study.
        blame: Count the death against the trial: after ``MAX_CRASHES`` in a row it is failed.
    """
    with store.transaction(write=True) as connection:
        for trial, owner, age, crashes in _running(connection):
            if owner.is_alive(age):
                continue
            _bury(connection, trial, crashes + blame, "Killed, or out of memory?")


def _running(connection: sqlite3.Connection) -> list[tuple[int, Owner, float, int]]:
    """Returns row, owner, seconds since the last heartbeat and crashes of the running trials."""
    rows = connection.execute(
        "SELECT id, host, pid, born, heartbeat, crashes FROM trials WHERE status = 'running'"
    ).fetchall()
    now = time.time()
    return [(row[0], Owner(*row[1:4]), now - row[4], row[5]) for row in rows]


def _bury(connection: sqlite3.Connection, trial: int, crashes: int, reason: str) -> None:
    """Frees the trial of a dead worker, or fails it after too many deaths."""
    if crashes < MAX_CRASHES:
        _free(connection, trial, crashes)
        return
    connection.execute(
        "UPDATE trials SET status = 'failed', token = NULL, finished = ?, error = ? WHERE id = ?",
        (
            time.time(),
            f"The process died {crashes} times in this trial without finishing an epoch; its log "
            f"is in the trial's folder. {reason}",
            trial,
        ),
    )


def _free(connection: sqlite3.Connection, trial: int, crashes: int = 0) -> None:
    connection.execute(
        "UPDATE trials SET status = 'waiting', token = NULL, crashes = ? WHERE id = ?",
        (crashes, trial),
    )


def busy_processes(store: Store) -> set[int]:
    """Returns the process numbers, on this machine, that hold a trial."""
    with store.transaction() as connection:
        rows = connection.execute(
            "SELECT pid FROM trials WHERE status = 'running' AND host = ?", (Owner.current().host,)
        )
        return {pid for (pid,) in rows}
