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
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from visgraft.study.changes import begun_part, changes, keep_widths
from visgraft.study.errors import StudyError
from visgraft.study.plan import Study, load_study, trials
from visgraft.study.schema import SCHEMA_VERSION, STATUSES, bring_up_to_date
from visgraft.tasks.files import write_atomically

__all__ = ["DATABASE", "STATUSES", "Store", "TrialRecord"]

DATABASE = "study.sqlite"
BUSY_SECONDS = 60.0

_HEADER = "# Written by visgraft: the study of this folder, resolved.\n"


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
        self._read: tuple[str, Study] | None = None

    @classmethod
    def open(cls, folder: str | Path) -> "Store":
        """Opens the study of a folder.

        Raises:
            StudyError: There is none, its database is damaged, or a newer visgraft wrote it.
        """
        store = cls.find(folder)
        if store is None:
            database = Path(folder) / DATABASE
            if database.is_file():
                raise StudyError(f"study: {database} is empty; the study never started.")
            raise StudyError(f"study: {folder} holds no study (no {DATABASE} in it).")
        return store

    @classmethod
    def find(cls, folder: str | Path) -> "Store | None":
        """Opens the study of a folder, if there is one.

        Raises:
            StudyError: Its database is damaged, or a newer visgraft wrote it.
        """
        store = cls(Path(folder))
        return store if store._database.is_file() and store._peek().text else None

    @classmethod
    def prepare(cls, folder: str | Path, study: Study) -> "Store":
        """Creates the folder of a study, or opens it and adds new variants and seeds.

        Whatever was not begun yet may still be changed.

        Raises:
            StudyError: The folder holds another study, or cannot be written.
        """
        store = cls(Path(folder))
        store._check_free()
        try:
            with _undone_if_it_fails(store._database):
                store.folder.mkdir(parents=True, exist_ok=True)
                store._database.touch()
                while not store._holds(study):
                    store._record(study)
        except OSError as error:
            raise StudyError(f"study: {store.folder} cannot be written: {error}.") from error
        return store

    def _holds(self, study: Study) -> bool:
        """Tells whether a study is on record as it is, in the present format."""
        known = self._peek()
        text = json.dumps(self._merge(known, study).model_dump(mode="json"))
        is_current = (known.text, known.version) == (text, SCHEMA_VERSION)
        return is_current and (self.folder / "study.yaml").exists()

    def _record(self, study: Study) -> None:
        """Records a study, if it may follow the one that the folder holds by now."""
        with self.transaction(write=True) as connection:
            known = self._state(connection)
            study = self._merge(known, study)
            values = study.model_dump(mode="json")
            bring_up_to_date(connection, known.version)
            self._enter(connection, study, json.dumps(values))
            content = _HEADER + yaml.safe_dump(values, sort_keys=False)
            write_atomically(self.folder / "study.yaml", content.encode())

    @classmethod
    def resolve(cls, folder: str | Path, study: Study) -> Study:
        """Returns a study as `prepare` would record it, with the widths that the folder knows.

        Nothing is written.

        Raises:
            StudyError: The folder holds another study.
        """
        store = cls(Path(folder))
        store._check_free()
        return store._merge(store._peek(), study) if store._database.exists() else study

    @property
    def study(self) -> Study:
        """The study as it stands now."""
        with self.transaction() as connection:
            text = self._text(connection)
        if self._read is None or self._read[0] != text:
            self._read = (text, load_study(json.loads(text)))
        return self._read[1]

    def trial_folder(self, variant: str, seed: int) -> Path:
        """Returns where a trial's recipe, checkpoints and log are."""
        return self.folder / "trials" / f"{variant}-seed{seed}"

    def trials(self) -> list[TrialRecord]:
        """Returns all trials, in the order in which they are taken up."""
        return self._select("")

    def peers(self, variant: str, seed: int) -> list[TrialRecord]:
        """Returns the trials that a trial may be compared with before it trains, in their order.

        They are those of its seed, itself included, and those of other seeds that start like it.
        """
        own = "SELECT {} FROM trials WHERE variant = :variant AND seed = :seed"
        return self._select(
            f"WHERE seed = :seed OR order_digest = ({own.format('order_digest')})"
            f" OR init_digest = ({own.format('init_digest')})",
            {"variant": variant, "seed": seed},
        )

    def counts(self) -> dict[str, int]:
        """Returns the number of trials by status, without those that no trial has."""
        with self.transaction() as connection:
            return dict(connection.execute("SELECT status, COUNT(*) FROM trials GROUP BY status"))

    def epochs(self) -> int:
        """Returns how many epochs all trials together have recorded so far."""
        with self.transaction() as connection:
            return connection.execute("SELECT SUM(epochs) FROM trials").fetchone()[0]

    def _select(self, condition: str, values: Mapping[str, Any] | None = None) -> list[TrialRecord]:
        """Returns the trials that fulfil a condition, in the order in which they are taken up."""
        with self.transaction() as connection:
            rows = connection.execute(
                f"SELECT {', '.join(_COLUMNS)} FROM trials {condition} ORDER BY position",
                values or {},
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
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            return (
                f"study: the disk of {self._database} is full; make room and run the study again, "
                "what is recorded is kept."
            )
        if isinstance(error, sqlite3.OperationalError):
            return f"study: {self._database} cannot be used: {error}."
        return (
            f"study: {self._database} is damaged ({error}); move it away and run the study again: "
            "what the trials' folders hold is read back, not trained again."
        )

    def _check_schema(self, connection: sqlite3.Connection) -> int:
        """Returns the format of the database, 0 if it is empty."""
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise StudyError(
                f"study: {self._database} has format {version}, this visgraft knows up to "
                f"{SCHEMA_VERSION}; a newer visgraft wrote it, use that one."
            )
        (tables,) = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        if version == 0 and tables:
            raise StudyError(f"study: {self._database} is an SQLite database, but not of a study.")
        return version

    def _peek(self) -> "_State":
        with self.transaction() as connection:
            return self._state(connection)

    def _state(self, connection: sqlite3.Connection) -> "_State":
        version = self._check_schema(connection)
        if not version:
            return _State(None, frozenset(), 0)
        text = self._text(connection)
        begun = connection.execute("SELECT variant, seed FROM trials WHERE attempts > 0")
        return _State(text, frozenset(begun), version)

    @staticmethod
    def _text(connection: sqlite3.Connection) -> str:
        """Returns the fields of the study as JSON."""
        return connection.execute("SELECT value FROM meta WHERE key = 'study'").fetchone()[0]

    def _check_free(self) -> None:
        """Refuses a folder whose study.yaml no study wrote."""
        resolved = self.folder / "study.yaml"
        if not self._database.exists() and _is_foreign(resolved):
            raise StudyError(
                f"study: {resolved} was not written by a study and would be overwritten; "
                "choose another folder for the results."
            )

    def _merge(self, known: "_State", study: Study) -> Study:
        """Returns a study with the widths that are known, if it may follow the one that is."""
        if known.text and any(control.is_open for control in study.controls.values()):
            study = keep_widths(load_study(json.loads(known.text)), study)
        self._check_unchanged(known, study)
        return study

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
    """The stored study's fields as JSON, the (variant, seed) ever taken up, the format."""

    text: str | None
    begun: frozenset[tuple[str, int]]
    version: int


@contextmanager
def _undone_if_it_fails(database: Path) -> Iterator[None]:
    """Takes a database that is still empty, and the folders made for it, away again."""
    missing = [path for path in (database, *database.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        with suppress(OSError):
            if missing and database.exists() and not database.stat().st_size:
                database.unlink()
            for folder in missing[1:]:
                folder.rmdir()
        raise


def _is_foreign(path: Path) -> bool:
    """Tells whether there is a study.yaml that no study wrote."""
    return path.exists() and not path.read_text(errors="replace").startswith(_HEADER)
