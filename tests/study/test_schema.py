"""A store that an older version wrote: readable as it is, raised by the first run."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from tests.study.tiny import study
from visgraft.study import schema
from visgraft.study.claims import claim_next
from visgraft.study.errors import StudyError
from visgraft.study.measuring.record import CostRecord, read_costs
from visgraft.study.reports.writing import report, study_data
from visgraft.study.store import Store

FORMAT_1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE environments (id INTEGER PRIMARY KEY, facts TEXT NOT NULL UNIQUE);
CREATE TABLE trials (
    id INTEGER PRIMARY KEY,
    variant TEXT NOT NULL,
    seed INTEGER NOT NULL,
    position INTEGER NOT NULL,
    status TEXT NOT NULL DEFAULT 'waiting'
        CHECK (status IN ('waiting', 'running', 'finished', 'failed')),
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
PRAGMA user_version = 1;
"""
"""What the first version of the store executed."""


@pytest.fixture
def old(tmp_path):
    """A study of format 1: one trial finished, three waiting."""
    store = Store.prepare(tmp_path / "study", study())
    claim = claim_next(store)
    claim.record_environment({"torch": "2.15", "threads": 1})
    claim.record_facts({"params": 7, "macs": 9, "init_digest": "a", "order_digest": "b"})
    claim.finish({1: {"top1": 50.0}, 2: {"top1": 61.5, "loss": 0.25}})
    store.settle("threads", "1")
    database = store.folder / "study.sqlite"
    with closing(sqlite3.connect(database)) as new:
        rows = {name: new.execute(f"SELECT * FROM {name}").fetchall() for name in TABLES}
    database.unlink()
    with closing(sqlite3.connect(database)) as connection:
        connection.executescript(FORMAT_1)
        for name, content in rows.items():
            places = ", ".join("?" * len(content[0]))
            connection.executemany(f"INSERT INTO {name} VALUES ({places})", content)
        connection.commit()
    return store


TABLES = ("meta", "environments", "trials", "metrics")


def version(folder):
    with closing(sqlite3.connect(folder / "study.sqlite")) as connection:
        return connection.execute("PRAGMA user_version").fetchone()[0]


def tables(folder):
    with closing(sqlite3.connect(folder / "study.sqlite")) as connection:
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
        return {name: "".join(sql.split()) for name, sql in rows}


def test_old_store_is_reported_without_being_changed(old):
    before = (old.folder / "study.sqlite").read_bytes()
    assert version(old.folder) == 1
    assert read_costs(Store.open(old.folder)) == CostRecord()
    data = study_data(old.folder)
    assert data.values == {("baseline", 0): 61.5}
    assert (data.measured, data.unmeasured) == ({}, {})
    report(old.folder)
    assert (old.folder / "study.sqlite").read_bytes() == before


def test_first_run_raises_an_old_store_and_loses_nothing(old, tmp_path):
    trials, curves, environments = old.trials(), old.curves(), old.environments()
    store = Store.prepare(old.folder, study())
    assert version(old.folder) == 2
    assert (store.trials(), store.curves(), store.environments()) == (trials, curves, environments)
    assert trials[0].result == {"top1": 61.5, "loss": 0.25}
    assert store.settle("threads", "5") == "1"
    fresh = Store.prepare(tmp_path / "fresh", study())
    assert tables(old.folder) == tables(fresh.folder)
    assert {"costs", "measuring"} <= tables(old.folder).keys()


def test_old_store_is_raised_as_a_whole_or_not_at_all(old, monkeypatch):
    before = (old.folder / "study.sqlite").read_bytes()
    first, second = schema._STEPS
    monkeypatch.setattr(schema, "_STEPS", (first, f"{second}\nCREATE TABLE trials (id);\n"))
    with pytest.raises(StudyError, match="table trials already exists"):
        Store.prepare(old.folder, study())
    assert (old.folder / "study.sqlite").read_bytes() == before
    monkeypatch.undo()
    Store.prepare(old.folder, study())
    assert version(old.folder) == 2


def test_another_study_leaves_an_old_store_as_it_is(old):
    before = (old.folder / "study.sqlite").read_bytes()
    with pytest.raises(StudyError, match="holds another study"):
        Store.prepare(old.folder, study(metric="loss", baseline="plain"))
    assert (old.folder / "study.sqlite").read_bytes() == before


def test_several_runs_raise_one_old_store(old):
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: Store.prepare(old.folder, study()), range(4)))
    assert version(old.folder) == 2
    assert [len(store.trials()) for store in stores] == [4] * 4
    assert stores[0].trials()[0].status == "finished"
