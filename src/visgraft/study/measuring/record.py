"""The record of what networks cost where they ran, and who may write it.

All figures of a record come from one moment of one machine; a later measurement takes the place of
the record as a whole. The claim works like that of a trial: what its holder writes is written only
while the claim bears its token, and only if no trial ran meanwhile.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import uuid4

from visgraft.study.measuring.cost import MeasuredCost
from visgraft.study.ownership import Owner
from visgraft.study.plan import Study
from visgraft.study.store import Store, TrialRecord

__all__ = ["CostRecord", "MeasuringClaim", "claim_measuring", "read_costs", "unmeasured"]

_ON = "measured_on"
"""Where the facts that all figures share stand in the study's facts."""
_ATTEMPTS = "SELECT COALESCE(SUM(attempts), 0) FROM trials"
"""A number that rises whenever a trial is taken up."""


@dataclass(frozen=True)
class CostRecord:
    """What the networks of a study cost, measured together.

    Attributes:
        costs: By name of the network.
        failures: Why a network could not be measured, by its name.
        environment: The machine and its versions.
        of: What was measured, in words.
        time: When, in seconds since 1970; 0 for never.
        share: Of the time of all calls, in which the calling thread had a processor: near 1 on a
            machine that does nothing else; None on a GPU.
    """

    costs: Mapping[str, MeasuredCost] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    of: str = ""
    time: float = 0.0
    share: float | None = None


def read_costs(store: Store) -> CostRecord:
    """Returns what is recorded; an empty record for a study of an older format, too."""
    with store.transaction() as connection:
        if connection.execute("PRAGMA user_version").fetchone()[0] < 2:
            return CostRecord()
        rows = connection.execute("SELECT network, figures, reason FROM costs").fetchall()
        shared = connection.execute("SELECT value FROM meta WHERE key = ?", (_ON,)).fetchone()
    return CostRecord(
        {n: MeasuredCost.from_dict(json.loads(figures)) for n, figures, _ in rows if figures},
        {name: reason for name, _, reason in rows if reason is not None},
        **(json.loads(shared[0]) if shared else {}),
    )


def unmeasured(record: CostRecord, study: Study, trials: Sequence[TrialRecord]) -> dict[str, str]:
    """Returns why networks of a study have no figures, by name; empty if none has any.

    Args:
        record: Of the study.
        study: Its plan.
        trials: Its trials.
    """
    if not record.costs and not record.failures:
        return {}
    finished = {trial.variant for trial in trials if trial.status == "finished"}
    why = {
        name: "not measured yet" if name in finished else "no trial of it has finished"
        for name in (study.baseline, *study.variants, *study.controls)
        if name not in record.costs
    }
    return {**why, **record.failures}


@dataclass(frozen=True)
class MeasuringClaim:
    """The right to measure the networks of a study and to record what they cost.

    Attributes:
        store: The study.
        token: Proof of the right.
    """

    store: Store
    token: str

    def heartbeat(self) -> None:
        """Shows that the holder lives."""
        with self.store.transaction(write=True) as connection:
            connection.execute(
                "UPDATE measuring SET heartbeat = ? WHERE token = ?", (time.time(), self.token)
            )

    def record(self, found: CostRecord) -> bool:
        """Puts a record into the place of the one before and gives the claim back.

        Returns:
            Whether it was written: not if the claim was lost, or a trial ran meanwhile.
        """
        shared = {name: getattr(found, name) for name in ("environment", "of", "time", "share")}
        with self.store.transaction(write=True) as connection:
            undisturbed = connection.execute(
                "SELECT 1 FROM measuring WHERE token = ?"
                f" AND attempts = ({_ATTEMPTS}) AND NOT EXISTS"
                " (SELECT 1 FROM trials WHERE status IN ('waiting', 'running'))",
                (self.token,),
            ).fetchone()
            connection.execute("DELETE FROM measuring WHERE token = ?", (self.token,))
            if not undisturbed:
                return False
            connection.execute("DELETE FROM costs")
            connection.executemany(
                "INSERT INTO costs (network, figures) VALUES (?, ?)",
                [(name, json.dumps(asdict(cost))) for name, cost in found.costs.items()],
            )
            connection.executemany(
                "INSERT INTO costs (network, reason) VALUES (?, ?)", found.failures.items()
            )
            connection.execute(
                "INSERT OR REPLACE INTO meta VALUES (?, ?)", (_ON, json.dumps(shared))
            )
        return True

    def release(self) -> None:
        """Gives the claim back."""
        with self.store.transaction(write=True) as connection:
            connection.execute("DELETE FROM measuring WHERE token = ?", (self.token,))


@contextmanager
def claim_measuring(store: Store, owner: Owner | None = None) -> Iterator[MeasuringClaim | None]:
    """Takes the right to measure; None if a living process has it.

    Args:
        store: The study, of the present format.
        owner: In whose name; this process by default, which has lost what it held before.
    """
    owner = owner or Owner.current()
    claim = MeasuringClaim(store, uuid4().hex)
    with store.transaction(write=True) as connection:
        held = connection.execute("SELECT host, pid, born, heartbeat FROM measuring").fetchone()
        now = time.time()
        holder = Owner(*held[:3]) if held else owner
        is_free = holder == owner or not holder.is_alive(now - held[3])
        if is_free:
            connection.execute(
                f"INSERT OR REPLACE INTO measuring VALUES (1, ?, ?, ?, ?, ({_ATTEMPTS}), ?)",
                (claim.token, owner.host, owner.pid, owner.born, now),
            )
    if not is_free:
        yield None
        return
    try:
        yield claim
    finally:
        claim.release()
