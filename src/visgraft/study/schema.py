"""The tables of a study's database, and how an older database gets them.

Format 1 held trials, metrics and environments. Format 2 adds what the networks cost where they ran.
A database is raised to the present format by the first run that opens it, in one transaction; a
report reads an older one as it is.
"""

import sqlite3

__all__ = ["SCHEMA_VERSION", "STATUSES", "bring_up_to_date"]

SCHEMA_VERSION = 2
STATUSES = ("waiting", "running", "finished", "failed")

_FORMAT_1 = f"""
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
_FORMAT_2 = """
CREATE TABLE costs (
    network TEXT PRIMARY KEY,
    figures TEXT,
    reason TEXT,
    CHECK ((figures IS NULL) <> (reason IS NULL))
);
CREATE TABLE measuring (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    token TEXT NOT NULL,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    born TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    heartbeat REAL NOT NULL
);
"""
_STEPS = (_FORMAT_1, _FORMAT_2)
"""What each format adds to the one before it."""


def bring_up_to_date(connection: sqlite3.Connection, version: int) -> None:
    """Adds what a database of an older format lacks, within the caller's transaction.

    Args:
        connection: With the write lock.
        version: Format that the database has; 0 for an empty one.
    """
    for step in _STEPS[version:]:
        for statement in step.split(";")[:-1]:
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
