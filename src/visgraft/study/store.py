"""The record of a study: one folder, one SQLite database, one sub-folder per trial.

    study.yaml                   the study, resolved: every field, no reference to another file
    study.sqlite                 trials, metrics, environments
    trials/<variant>-seed<k>/    what training wrote: recipe, checkpoints, log

Every change is one transaction that takes the write lock first, so that any number of processes
may share a folder and any of them may be killed. The database uses SQLite's rollback journal, which
also works on network file systems, where the write-ahead log does not.
"""

import json
import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from visgraft.study.changes import begun_part, changes, keep_widths
from visgraft.study.errors import StudyError
from visgraft.study.plan import Study, load_study, trials
from visgraft.tasks.files import write_atomically

__all__ = ["DATABASE", "STATUSES", "Store", "TrialRecord"]

DATABASE = "study.sqlite"
STATUSES = ("waiting", "running", "finished", "failed")
SCHEMA_VERSION = 1
BUSY_SECONDS = 60.0

_HEADER = "# Written by visgraft: the study of this folder, resolved.\n"
_SCHEMA = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE environments (id INTEGER PRIMARY KEY, facts TEXT NOT NULL UNIQUE);
CREATE TABLE trials (
    id INTEGER PRIMARY KEY,
    variant TEXT NOT NULL,
    seed INTEGER NOT NULL,
    position INTEGER NOT NULL,
    status TEXT NOT NULL DEFAULT 'waiting' CHECK (status IN {STATUSES}),
    attempts INTEGER NOT NULL DEFAULT 0,
    crashes INTEGER NOT NULL DEFAULT 0,
    epochs INTEGER NOT NULL DEFAULT 0,
    token TEXT,
    host TEXT,
    pid INTEGER,
    born TEXT,
    heartbeat REAL,
    started REAL,
    finished REAL,
    seconds REAL NOT NULL DEFAULT 0,
    error TEXT,
    params INTEGER,
    macs INTEGER,
    init_digest TEXT,
    order_digest TEXT,
    result TEXT,
    environment INTEGER REFERENCES environments (id),
    UNIQUE (variant, seed)
);
CREATE INDEX trials_by_status ON trials (status, position);
CREATE TABLE metrics (
    trial INTEGER NOT NULL REFERENCES trials (id),
    epoch INTEGER NOT NULL,
    name TEXT NOT NULL,
    value REAL,
    PRIMARY KEY (trial, epoch, name)
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class TrialRecord:
    """What is known of one trial; ``None`` where it is not known yet.

    Attributes:
        variant: Name of the variant.
        seed: Seed of initial weights, data order and augmentation.
        status: ``"waiting"``, ``"running"``, ``"finished"`` or ``"failed"``.
        attempts: How often a process took it up.
        epochs: Epochs recorded so far.
        seconds: Time spent on it, over all attempts.
        started: When it was first taken up, in seconds since 1970.
        finished: When it ended, well or not, in seconds since 1970.
        params: Parameters of the model.
        macs: Multiplications with addition for one image.
        init_digest: Digest of the initial weights that all variants of the seed share.
        order_digest: Digest of the order in which the training images were drawn.
        error: Traceback of a failed trial.
        result: The metrics of the last epoch, by name.
    """

    variant: str
    seed: int
    status: str
    attempts: int
    epochs: int
    seconds: float
    started: float | None
    finished: float | None
    params: int | None
    macs: int | None
    init_digest: str | None
    order_digest: str | None
    error: str | None
    result: dict[str, float] | None


_COLUMNS = [field.name for field in fields(TrialRecord)]


class Store:
    """The folder of a study, opened.

    Which epoch's numbers count: the last one's. The best of many epochs on the validation images
    would be a choice made on the images that judge, and larger for the variant that fluctuates
    more.

    Args:
        folder: Where the study lives; use :meth:`open` or :meth:`prepare`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._database = folder.absolute() / DATABASE

    @classmethod
    def open(cls, folder: str | Path) -> "Store":
        """Opens the study of a folder.

        Raises:
            StudyError: There is none, its database is damaged, or a newer visgraft wrote it.
        """
        store = cls(Path(folder))
        if not store._database.is_file():
            raise StudyError(f"study: {store.folder} holds no study (no {DATABASE} in it).")
        if store._peek().text is None:
            raise StudyError(f"study: {store._database} is empty; the study never started.")
        return store

    @classmethod
    def prepare(cls, folder: str | Path, study: Study) -> "Store":
        """Creates the folder of a study, or opens it and adds new variants and seeds.

        Whatever was not begun yet may still be changed.

        Raises:
            StudyError: The folder holds another study, or cannot be written.
        """
        store = cls(Path(folder))
        resolved = store.folder / "study.yaml"
        if not store._database.exists() and _is_foreign(resolved):
            raise StudyError(
                f"study: {resolved} was not written by a study and would be overwritten; "
                "choose another folder for the results."
            )
        try:
            store.folder.mkdir(parents=True, exist_ok=True)
            store._database.touch()
            while True:
                known = store._peek()
                wanted = study
                if known.text and any(control.is_open for control in study.controls.values()):
                    wanted = keep_widths(load_study(json.loads(known.text)), study)
                values = wanted.model_dump(mode="json")
                text = json.dumps(values)
                if known.text == text and resolved.exists():
                    break
                store._check_unchanged(known, wanted)
                with store.transaction(write=True) as connection:
                    if store._state(connection) != known:
                        continue  # another process was faster
                    if known.text is None:
                        store._create(connection)
                    store._enter(connection, wanted, text)
                    content = _HEADER + yaml.safe_dump(values, sort_keys=False)
                    write_atomically(resolved, content.encode())
        except OSError as error:
            raise StudyError(f"study: {store.folder} cannot be written: {error}.") from error
        return store

    @property
    def study(self) -> Study:
        """The study as it stands now."""
        return load_study(json.loads(self._peek().text or "{}"))

    def trial_folder(self, variant: str, seed: int) -> Path:
        """Returns where a trial's recipe, checkpoints and log are."""
        return self.folder / "trials" / f"{variant}-seed{seed}"

    def trials(self) -> list[TrialRecord]:
        """Returns all trials, in the order in which they are taken up."""
        with self.transaction() as connection:
            rows = connection.execute(
                f"SELECT {', '.join(_COLUMNS)} FROM trials ORDER BY position"
            ).fetchall()
        records = [dict(zip(_COLUMNS, row, strict=True)) for row in rows]
        return [TrialRecord(**r | {"result": json.loads(r["result"] or "null")}) for r in records]

    def curves(self) -> list[tuple[str, int, int, dict[str, float]]]:
        """Returns (variant, seed, epoch, metrics by name) of every epoch recorded so far."""
        found: dict[tuple[str, int, int], dict[str, float]] = {}
        with self.transaction() as connection:
            rows = connection.execute(
                "SELECT variant, seed, epoch, name, value FROM metrics"
                " JOIN trials ON trials.id = trial ORDER BY position, epoch, name"
            )
            for variant, seed, epoch, name, value in rows:
                number = math.nan if value is None else value  # SQLite knows no NaN
                found.setdefault((variant, seed, epoch), {})[name] = number
        return [(*key, values) for key, values in found.items()]

    def final(self, metric: str) -> dict[tuple[str, int], float]:
        """Returns a metric of the last epoch, by (variant, seed), of every finished trial."""
        return {
            (record.variant, record.seed): record.result[metric]
            for record in self.trials()
            if record.status == "finished" and record.result and metric in record.result
        }

    def environment(self) -> dict[str, Any]:
        """Returns the versions and the machine of the first trial; empty before it started."""
        found = self.environments()
        return found[0] if found else {}

    def environments(self) -> list[dict[str, Any]]:
        """Returns every distinct environment that trials ran in, oldest first."""
        with self.transaction() as connection:
            rows = connection.execute("SELECT facts FROM environments ORDER BY id")
            return [json.loads(facts) for (facts,) in rows]

    def settle(self, key: str, value: str) -> str:
        """Returns the value that the study has fixed for ``key``; the first one offered stays."""
        with self.transaction(write=True) as connection:
            connection.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (key, value))
            return connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()[0]

    @contextmanager
    def transaction(self, *, write: bool = False) -> Iterator[sqlite3.Connection]:
        """Runs its body as one transaction on a connection of its own.

        Args:
            write: Take the write lock first; else the body only reads.

        Raises:
            StudyError: SQLite cannot do it, and why.
        """
        try:
            with closing(
                sqlite3.connect(
                    f"{self._database.as_uri()}?mode=rw",
                    uri=True,
                    timeout=BUSY_SECONDS,
                    isolation_level=None,
                )
            ) as connection:
                connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                yield connection
                connection.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            raise StudyError(self._explain(error)) from error

    def _explain(self, error: sqlite3.DatabaseError) -> str:
        if isinstance(error, sqlite3.OperationalError):
            return f"study: {self._database} cannot be used: {error}."
        return (
            f"study: {self._database} is damaged ({error}); move it away and run the study again: "
            "what the trials' folders hold is read back, not trained again."
        )

    def _check_schema(self, connection: sqlite3.Connection) -> bool:
        """Tells whether the database holds a study; False if it is empty."""
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise StudyError(
                f"study: {self._database} has format {version}, this visgraft knows up to "
                f"{SCHEMA_VERSION}; a newer visgraft wrote it, use that one."
            )
        (tables,) = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        if version == 0 and tables:
            raise StudyError(f"study: {self._database} is an SQLite database, but not of a study.")
        return version > 0

    def _peek(self) -> "_State":
        with self.transaction() as connection:
            return self._state(connection)

    def _state(self, connection: sqlite3.Connection) -> "_State":
        if not self._check_schema(connection):
            return _State(None, frozenset())
        (text,) = connection.execute("SELECT value FROM meta WHERE key = 'study'").fetchone()
        begun = connection.execute("SELECT variant, seed FROM trials WHERE attempts > 0")
        return _State(text, frozenset(begun))

    def _check_unchanged(self, known: "_State", study: Study) -> None:
        """Refuses a study that would make begun trials incomparable or lose them."""
        if not known.text or not known.begun:
            return
        old = load_study(json.loads(known.text))
        found = changes(begun_part(old, known.begun), study)
        if found:
            raise StudyError(
                f"study: {self.folder} holds another study ({'; '.join(found)}); variants, "
                "controls and seeds may be added to a study, anything else needs a new folder."
            )

    @staticmethod
    def _create(connection: sqlite3.Connection) -> None:
        for statement in _SCHEMA.split(";")[:-1]:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    @staticmethod
    def _enter(connection: sqlite3.Connection, study: Study, text: str) -> None:
        """Records the study and a row for each of its trials."""
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('study', ?)", (text,))
        connection.execute("DELETE FROM trials WHERE attempts = 0")
        connection.executemany(
            "INSERT INTO trials (position, variant, seed) VALUES (?, ?, ?)"
            " ON CONFLICT (variant, seed) DO UPDATE SET position = excluded.position",
            [(position, spec.variant, spec.seed) for position, spec in enumerate(trials(study))],
        )


@dataclass(frozen=True)
class _State:
    """The stored study's fields as JSON, and the (variant, seed) that were ever taken up."""

    text: str | None
    begun: frozenset[tuple[str, int]]


def _is_foreign(path: Path) -> bool:
    """Tells whether there is a study.yaml that no study wrote."""
    return path.exists() and not path.read_text(errors="replace").startswith(_HEADER)
