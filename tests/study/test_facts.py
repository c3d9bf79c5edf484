import threading

import pytest

from tests.study.tiny import study
from visgraft.study import trial
from visgraft.study.errors import StudyError
from visgraft.study.facts import check_pairing
from visgraft.study.store import TrialRecord
from visgraft.tasks.files import locked


def record(variant, seed, init, order, status="finished"):
    return TrialRecord(
        variant, seed, status, 1, 2, 1.0, 0.0, 1.0, 10, 20, init, order, None, None
    )  # fmt: skip


FAIR = [
    record("baseline", 0, "w0", "o0"),
    record("ca", 0, "w0", "o0"),
    record("baseline", 1, "w1", "o1"),
    record("ca", 1, "w1", "o1"),
]


def test_fair_study_passes_complete_or_not():
    check_pairing(study(), FAIR)
    check_pairing(study(), FAIR[:3])
    check_pairing(study(), [*FAIR[:3], record("ca", 1, None, None, "waiting")])


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (record("ca", 1, "w9", "o1"), "baseline seed 1 and ca seed 1 start from different weights"),
        (record("ca", 1, "w1", "o9"), "baseline seed 1 and ca seed 1 see the images in different"),
    ],
)
def test_trials_of_a_seed_that_differ(wrong, text):
    with pytest.raises(StudyError, match=text):
        check_pairing(study(), [*FAIR[:3], wrong])


def test_seeds_that_do_not_differ():
    with pytest.raises(StudyError, match="seed 0 and baseline seed 1 start from the same weights"):
        check_pairing(study(), [FAIR[0], record("baseline", 1, "w0", "o1")])
    with pytest.raises(StudyError, match="seed 0 and baseline seed 1 see the images in the same o"):
        check_pairing(study(), [FAIR[0], record("baseline", 1, "w1", "o0")])


def test_common_start_weights_are_legal():
    plan = study(recipe=study().recipe.model_dump() | {"checkpoint": "start.pth"})
    check_pairing(plan, [FAIR[0], record("baseline", 1, "w0", "o1")])


def test_another_network_has_other_weights():
    plan = study(variants={"wide": {"model_args": {"channels": [16, 16, 16, 16]}}})
    check_pairing(plan, [FAIR[0], record("wide", 0, "v0", "o0")])
    with pytest.raises(StudyError, match="baseline seed 0 and wide seed 0 see the images in diff"):
        check_pairing(plan, [FAIR[0], record("wide", 0, "v0", "o9")])


def test_trial_waits_for_the_lock_of_a_dead_worker(tmp_path):
    held, release = threading.Event(), threading.Event()

    def hold():
        with locked(tmp_path):
            held.set()
            release.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(10)
    trial._wait_until_free(tmp_path, 0.0)  # training will say who holds it
    threading.Timer(0.2, release.set).start()
    trial._wait_until_free(tmp_path, 30.0)
    assert release.is_set()
    holder.join()
