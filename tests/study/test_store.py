import math
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import pytest
import yaml

from visgraft.study import claims, ownership
from visgraft.study.claims import LostClaimError, busy_processes, claim_next, reopen, sweep
from visgraft.study.errors import StudyError
from visgraft.study.ownership import Owner
from visgraft.study.plan import load_study
from visgraft.study.store import Store

FIELDS = {
    "recipe": {"data": "fashion_mini", "model": "resnet10_small"},
    "variants": {"cot": {"block": "cot", "at": "block_end"}},
    "seeds": 2,
}
CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])


def study(**fields):
    return load_study(FIELDS | fields)


def status(store):
    return {(t.variant, t.seed): t.status for t in store.trials()}


@pytest.fixture
def store(tmp_path):
    return Store.prepare(tmp_path / "study", study())


@contextmanager
def process():
    """An owner on this machine, and the process that it stands for."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as running:
        owner = Owner(Owner.current().host, running.pid, ownership._born(running.pid))
        assert owner.is_alive(math.inf)
        yield owner, running
        running.kill()


@pytest.fixture
def dead():
    """An owner on this machine whose process has ended."""
    with process() as (owner, _):
        pass
    return owner


def test_folder_holds_the_resolved_study_and_its_trials(store):
    assert Store.open(store.folder).study == study()
    assert load_study(store.folder / "study.yaml") == study()
    assert list(status(store).items()) == [
        (("baseline", 0), "waiting"),
        (("cot", 0), "waiting"),
        (("baseline", 1), "waiting"),
        (("cot", 1), "waiting"),
    ]
    assert store.trial_folder("cot", 1) == store.folder / "trials" / "cot-seed1"


def test_record_of_a_trial(store):
    claim = claim_next(store)
    assert (claim.variant, claim.seed) == ("baseline", 0)
    claim.record_environment({"torch": "2.15", "threads": 1})
    claim.record_facts({"params": 7, "macs": 9, "init_digest": "a", "order_digest": "b"})
    claim.record_epoch(0, {"top1": 50.0, "loss": math.nan})
    claim.record_epoch(1, {"top1": 60.0, "loss": 2.0})
    claim.record_epoch(1, {"top1": 61.0, "loss": 1.0})
    before = store.trials()[0]
    assert (before.status, before.epochs, before.result) == ("running", 2, None)
    assert store.final("top1") == {}
    claim.finish({0: {"top1": 50.0, "loss": math.nan}, 1: {"top1": 61.0, "loss": 1.0}})
    trial = store.trials()[0]
    assert (trial.status, trial.attempts, trial.params, trial.macs) == ("finished", 1, 7, 9)
    assert (trial.init_digest, trial.order_digest, trial.error) == ("a", "b", None)
    assert trial.result == {"top1": 61.0, "loss": 1.0}
    assert 0 < trial.seconds < 60
    assert trial.started <= trial.finished <= time.time()
    assert store.final("top1") == {("baseline", 0): 61.0}
    assert store.environment() == {"torch": "2.15", "threads": 1}
    first, second = store.curves()
    assert first[:3] == ("baseline", 0, 0)
    assert math.isnan(first[3]["loss"])
    assert second == ("baseline", 0, 1, {"top1": 61.0, "loss": 1.0})


def test_finish_fills_in_epochs_that_were_not_recorded(store):
    claim = claim_next(store)
    claim.finish({0: {"top1": 1.0}, 1: {"top1": 2.0}})
    assert [curve[2:] for curve in store.curves()] == [(0, {"top1": 1.0}), (1, {"top1": 2.0})]
    assert store.trials()[0].epochs == 2


def test_failed_trial_keeps_its_traceback_until_it_is_tried_again(store):
    claim_next(store).fail("Traceback: no luck")
    assert store.trials()[0].error == "Traceback: no luck"
    assert claim_next(store).variant == "cot"
    sweep(store)
    assert status(store)["baseline", 0] == "failed"
    reopen(store)
    again = claim_next(store)
    assert (again.variant, again.seed) == ("baseline", 0)
    assert store.trials()[0].error is None


def test_dead_owner_loses_its_trial_and_is_blamed_only_in_a_running_study(store, dead):
    for attempt in range(1, 6):
        claim_next(store, dead)
        sweep(store, blame=False)
        assert (store.trials()[0].status, store.trials()[0].attempts) == ("waiting", attempt)
    for _ in range(claims.MAX_CRASHES - 1):
        claim_next(store, dead)
        sweep(store)
        assert store.trials()[0].status == "waiting"
    claim = claim_next(store, dead)
    claim.record_epoch(0, {"top1": 1.0})  # progress wipes the slate clean
    for _ in range(claims.MAX_CRASHES):
        assert store.trials()[0].status != "failed"
        sweep(store)
        claim = claim_next(store, dead)
    assert store.trials()[0].status == "failed"
    assert "died 3 times in this trial" in store.trials()[0].error
    assert (claim.variant, claim.seed) == ("cot", 0)


def test_living_owner_keeps_its_trial_however_old_its_heartbeat(store):
    claim_next(store)
    with store.transaction(write=True) as connection:
        connection.execute("UPDATE trials SET heartbeat = 0")
    sweep(store)
    assert status(store)["baseline", 0] == "running"
    assert busy_processes(store) == {os.getpid()}


def test_new_run_takes_up_what_this_process_left_behind(store):
    claim = claim_next(store)
    reopen(store)
    assert status(store)["baseline", 0] == "waiting"
    with pytest.raises(LostClaimError):
        claim.heartbeat()


def test_owner_elsewhere_is_judged_by_its_heartbeat(store):
    claim = claim_next(store, Owner("another machine", os.getpid(), "1"))
    sweep(store)
    assert status(store)["baseline", 0] == "running"
    assert busy_processes(store) == set()
    with store.transaction(write=True) as connection:
        connection.execute("UPDATE trials SET heartbeat = heartbeat - 1000")
    sweep(store)
    assert status(store)["baseline", 0] == "waiting"
    with pytest.raises(LostClaimError, match="baseline seed 0 was given to another process"):
        claim.record_epoch(0, {"top1": 0.0})
    assert claim_next(store).variant == "baseline"
    with pytest.raises(LostClaimError):
        claim.finish({0: {"top1": 0.0}})
    assert store.curves() == []


def test_reused_process_number_is_another_owner():
    here = Owner.current()
    assert here.is_alive(math.inf)
    assert not Owner(here.host, here.pid, here.born + "0").is_alive(0)
    assert not Owner(here.host, 2**22 + 1, "1").is_alive(0)


def test_process_table_without_proc(monkeypatch):
    monkeypatch.setattr(ownership, "_PROC", Path("/no/such/folder"))
    with process() as (owner, _):
        assert owner.born.count(":") == 2  # a date with a time of day
    assert not owner.is_alive(0)


def test_zombie_counts_as_dead():
    with process() as (owner, running):
        running.kill()
        os.waitid(os.P_PID, running.pid, os.WEXITED | os.WNOWAIT)  # dead, but not collected
        assert not owner.is_alive(0)


def _hammer(folder, results):
    store = Store.open(folder)
    mine = []
    while claim := claim_next(store):
        claim.record_epoch(0, {"top1": float(claim.seed)})
        claim.finish({0: {"top1": float(claim.seed)}})
        mine.append((claim.variant, claim.seed))
        sweep(store)
    results.put(mine)


def test_many_processes_take_each_trial_once(tmp_path):
    store = Store.prepare(tmp_path, study(seeds=20))
    results = CONTEXT.Queue()
    workers = [CONTEXT.Process(target=_hammer, args=(tmp_path, results)) for _ in range(6)]
    for worker in workers:
        worker.start()
    taken = [pair for _ in workers for pair in results.get(timeout=60)]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert sorted(taken) == sorted(status(store))
    assert len(taken) == 40
    assert store.final("top1") == {pair: float(pair[1]) for pair in taken}


def _prepare(folder, plan):
    Store.prepare(folder, plan)


def test_many_processes_create_one_store(tmp_path):
    workers = [CONTEXT.Process(target=_prepare, args=(tmp_path / "new", study())) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 6
    assert len(Store.open(tmp_path / "new").trials()) == 4


def test_variants_and_seeds_may_be_added(store):
    claim_next(store).finish({0: {"top1": 3.0}})
    more = study(
        variants={"ca": {"block": "coord_attention", "at": "block_end"}, **FIELDS["variants"]},
        seeds=[4, 0, 1],
    )
    Store.prepare(store.folder, more)
    names = [(t.variant, t.seed) for t in store.trials()]
    assert names == [(v, s) for s in (4, 0, 1) for v in ("baseline", "ca", "cot")]
    assert store.final("top1") == {("baseline", 0): 3.0}
    assert store.study == more


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"recipe": FIELDS["recipe"] | {"epochs": 11}}, "recipe.epochs was 10 and is 11"),
        ({"seeds": [1]}, "seeds 0 are missing"),
        ({"variants": {"c": {"grafts": []}}}, "variants.cot is missing"),
    ],
)
def test_another_study_is_refused_and_nothing_changes(store, fields, text):
    claim_next(store)
    claim_next(store)
    with pytest.raises(StudyError, match=f"holds another study .*{text}.* needs a new folder"):
        Store.prepare(store.folder, study(**fields))
    assert store.study == study()
    assert load_study(store.folder / "study.yaml") == study()


def test_what_was_not_begun_may_be_changed(store):
    other = study(
        recipe=FIELDS["recipe"] | {"epochs": 3},
        variants={"ca": {"block": "coord_attention", "at": "block_end"}},
        baseline="plain",
    )
    Store.prepare(store.folder, other)
    assert store.study == other
    assert [(t.variant, t.seed) for t in store.trials()[:2]] == [("plain", 0), ("ca", 0)]
    store.settle("data", "old images")
    reopen(store)
    assert store.settle("data", "new images") == "new images"

    claim_next(store).fail("Traceback")
    reopen(store)
    assert store.settle("data", "newer images") == "new images"
    mended = other.variants | study().variants
    mended["ca"] = mended["cot"]
    changed = other.model_copy(update={"variants": mended, "seeds": (0, 5)})
    Store.prepare(store.folder, changed)
    names = [(t.variant, t.seed) for t in store.trials()]
    assert names == [(v, s) for s in (0, 5) for v in ("plain", "ca", "cot")]
    with pytest.raises(StudyError, match="baseline was 'plain' and is 'baseline'"):
        Store.prepare(store.folder, study())


def test_workers_of_the_loader_may_change(store):
    Store.prepare(store.folder, study(recipe=FIELDS["recipe"] | {"workers": 2}))
    assert store.study.recipe.workers == 2


def test_file_of_the_user_is_not_overwritten(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(FIELDS))
    with pytest.raises(StudyError, match=r"study\.yaml was not written by a study"):
        Store.prepare(tmp_path, load_study(file))
    assert yaml.safe_load(file.read_text()) == FIELDS
    assert os.listdir(tmp_path) == ["study.yaml"]


def test_folders_without_a_usable_study(store, tmp_path):
    with pytest.raises(StudyError, match="holds no study"):
        Store.open(tmp_path)
    database = store.folder / "study.sqlite"
    content = database.read_bytes()
    database.write_bytes(b"SQLite format 4 is not out yet" * 100)
    with pytest.raises(StudyError, match=r"is damaged .* move it away and run the study again"):
        Store.open(store.folder)
    database.write_bytes(content[: len(content) // 2])
    with pytest.raises(StudyError, match="is damaged"):
        Store.open(store.folder).trials()
    database.write_bytes(b"")
    with pytest.raises(StudyError, match="is empty; the study never started"):
        Store.open(store.folder)
    database.write_bytes(content)
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA user_version = 9")
    connection.close()
    for call in (Store.open, lambda folder: Store.prepare(folder, study())):
        with pytest.raises(StudyError, match=r"has format 9, .* a newer visgraft wrote it"):
            call(store.folder)


def test_database_that_vanishes(store):
    claim = claim_next(store)
    (store.folder / "study.sqlite").unlink()
    for call in (claim.heartbeat, store.trials, lambda: claim_next(store)):
        with pytest.raises(StudyError, match=r"study\.sqlite cannot be used: unable to open"):
            call()


def test_foreign_database(tmp_path):
    with sqlite3.connect(tmp_path / "study.sqlite") as connection:
        connection.execute("CREATE TABLE songs (name)")
    connection.close()
    with pytest.raises(StudyError, match="is an SQLite database, but not of a study"):
        Store.prepare(tmp_path, study())


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match="cannot be written"):
        Store.prepare(tmp_path / "file" / "study", study())


def test_first_value_settles(store):
    assert store.settle("threads", "2") == "2"
    assert Store.open(store.folder).settle("threads", "5") == "2"


def test_name_with_odd_characters(tmp_path):
    folder = tmp_path / "50% of #1? näive"
    claim_next(Store.prepare(folder, study())).finish({0: {"top1": 1.0}})
    assert Store.open(folder).final("top1") == {("baseline", 0): 1.0}
    assert sorted(os.listdir(folder)) == ["study.sqlite", "study.yaml"]
