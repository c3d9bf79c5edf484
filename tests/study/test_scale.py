"""What a study of many trials does once per trial, or twice a second, does not grow with them."""

import time

import pytest

from tests.study.tiny import FIELDS, study
from visgraft.study import progress
from visgraft.study.claims import claim_next
from visgraft.study.errors import StudyError
from visgraft.study.facts import check_pairing
from visgraft.study.local import LocalExecutor
from visgraft.study.plan import trial_spec, trials
from visgraft.study.progress import StudyProgress
from visgraft.study.store import Store

CONTROLS = {
    "same": {"kind": "identity", "of": "ca"},
    "wide": {"kind": "widened", "of": "ca", "model_args": {"channels": [9, 9, 9, 9]}},
}


@pytest.fixture
def store(tmp_path):
    return Store.prepare(tmp_path, study(seeds=4))


def never(*_):
    raise AssertionError("all trials were read")


def test_one_trial_is_specified_like_all():
    plan = study(controls=CONTROLS, variants=FIELDS["variants"] | {"other": {"model": "resnet18"}})
    every = trials(plan)
    assert len(every) == 10
    assert [trial_spec(plan, spec.variant, spec.seed) for spec in every] == every
    by_name = {spec.variant: spec.recipe for spec in every}
    assert by_name["baseline"].grafts == by_name["wide"].grafts == ()
    assert [by_name[n].grafts[0].learns for n in ("ca", "same")] == [True, False]
    assert by_name["wide"].model_args == {"channels": [9, 9, 9, 9]}
    assert by_name["other"].model == "resnet18"


def test_study_is_read_again_only_when_it_changed(store):
    first = store.study
    assert store.study is first
    Store.prepare(store.folder, study(seeds=5))
    assert store.study.seeds == (0, 1, 2, 3, 4)


def test_peers_of_a_trial(store):
    digests = {
        ("baseline", 0): ("w0", "o0"),
        ("ca", 0): ("w0", "o0"),
        ("baseline", 1): ("w1", "o1"),
        ("ca", 1): ("w1", "o0"),  # the order of another seed
        ("baseline", 2): ("w0", "o2"),  # the weights of another seed
    }
    for start, order in digests.values():
        claim = claim_next(store)
        claim.record_facts({"init_digest": start, "order_digest": order})
        claim.fail("Traceback")

    def peers(variant, seed):
        return [(t.variant, t.seed) for t in store.peers(variant, seed)]

    assert peers("ca", 0) == [("baseline", 0), ("ca", 0), ("ca", 1), ("baseline", 2)]
    assert peers("baseline", 1) == [("baseline", 1), ("ca", 1)]
    assert peers("ca", 3) == [("baseline", 3), ("ca", 3)]
    with pytest.raises(StudyError, match="baseline seed 1 and ca seed 1 see the images in diff"):
        check_pairing(store.study, store.peers("ca", 1))
    with pytest.raises(StudyError, match="baseline seed 0 and ca seed 1 see the images in the sa"):
        check_pairing(store.study, [t for t in store.peers("ca", 0) if t.seed < 2])
    with pytest.raises(StudyError, match="baseline seed 0 and baseline seed 2 start from the same"):
        check_pairing(store.study, store.peers("baseline", 2))
    check_pairing(store.study, store.peers("ca", 3))


def test_counts(store):
    claim_next(store).fail("Traceback")
    claim_next(store).record_epoch(1, {"top1": 1.0})
    claim = claim_next(store)
    claim.finish({1: {"top1": 1.0}, 2: {"top1": 2.0}})
    assert store.counts() == {"failed": 1, "running": 1, "finished": 1, "waiting": 5}
    assert store.epochs() == 3


def test_executor_does_not_read_all_trials(store, monkeypatch):
    with store.transaction(write=True) as connection:
        connection.execute("UPDATE trials SET status = 'finished'")
    monkeypatch.setattr(Store, "trials", never)
    LocalExecutor(1, 1).run(store, lambda: None)


def test_progress_takes_a_small_share_of_the_time(store, monkeypatch):
    def read(store):
        reads.append(None)
        end = time.thread_time() + 0.01
        while time.thread_time() < end:
            pass
        return records

    records, reads = store.trials(), []
    monkeypatch.setattr(progress, "SHARE", 0.05)  # a look of 10 ms each 0.2 s
    with StudyProgress(store, 1, 1) as display:
        monkeypatch.setattr(Store, "trials", read)
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            display.update()
        during = len(reads)
    assert 1 <= during <= 4
    assert len(reads) == during + 1  # the last state is always shown
