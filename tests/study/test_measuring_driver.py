"""When the networks of a study are measured, by whom, and what becomes of the figures."""

import pytest

from tests.study.made_up_costs import record
from tests.study.tiny import FIELDS, study
from visgraft.study.claims import claim_next
from visgraft.study.errors import StudyError
from visgraft.study.execution import StudyInterrupted, run_study
from visgraft.study.measuring import driver as measuring_driver
from visgraft.study.measuring.record import claim_measuring, read_costs
from visgraft.study.ownership import Owner
from visgraft.study.reports.writing import study_data
from visgraft.study.store import Store

ELSEWHERE = Owner("another machine", 1, "1")


def finish(store, *, fail=()):
    """Ends all waiting trials without training anything."""
    while claim := claim_next(store):
        if claim.variant in fail:
            claim.fail("Traceback\nValueError: no luck")
        else:
            claim.finish({1: {"top1": 50.0}})


@pytest.fixture
def store(tmp_path):
    """The tiny study, all trials finished."""
    store = Store.prepare(tmp_path / "study", study())
    finish(store)
    return store


@pytest.fixture
def measured(monkeypatch):
    """The networks of each measurement, which takes no time; its clock counts measurements."""
    asked = []

    def measure(store, names, threads):
        asked.append(names)
        assert len(asked) < 9
        return record(names, float(len(asked)))

    monkeypatch.setattr(measuring_driver, "_measure_here", measure)
    return asked


def run(store, plan=None, **options):
    return run_study(plan or study(), store.folder, workers=0, progress=False, **options)


def test_figures_are_recorded_once_and_kept(store, measured):
    run(store)
    assert measured == [["baseline", "ca"]]
    found = read_costs(store)
    assert found == record(["baseline", "ca"], 1.0)
    run(store)
    run(store, measure=False)
    assert len(measured) == 1
    assert read_costs(store) == found
    data = study_data(store.folder)
    assert (data.measured, data.unmeasured) == (found.costs, {})
    assert (data.measured_on, data.measured_of) == (found.environment, "the whole network")
    assert data.measured_share == 0.97
    with claim_measuring(store) as claim:
        assert claim is not None


def test_measuring_may_be_left_out_or_repeated(store, measured):
    run(store, measure=False)
    assert (measured, read_costs(store).costs) == ([], {})
    run(store, measure="again")
    run(store, measure="again")
    assert len(measured) == 2
    assert read_costs(store).time == 2.0
    with pytest.raises(StudyError, match="measure must be True, False or 'again', got 'often'"):
        run(store, measure="often")


def test_variant_added_later_has_all_measured_anew(store, measured):
    run(store)
    more = study(variants=FIELDS["variants"] | {"same": {"grafts": []}})
    finish(Store.prepare(store.folder, more))
    assert study_data(store.folder).unmeasured == {"same": "not measured yet"}
    run(store, more)
    assert measured[1:] == [["baseline", "ca", "same"]]
    assert read_costs(store) == record(["baseline", "ca", "same"], 2.0)
    finish(Store.prepare(store.folder, study(variants=more.variants, seeds=3)))
    run(store, study(variants=more.variants, seeds=3))
    assert len(measured) == 2


def test_network_without_a_finished_trial_is_left_out(tmp_path, measured, monkeypatch):
    store = Store.prepare(tmp_path / "study", study())
    finish(store, fail=["ca"])
    measuring_driver.measure_costs(store, "missing", in_process=True)
    assert measured == [["baseline"]]
    assert study_data(store.folder).unmeasured == {"ca": "no trial of it has finished"}
    measuring_driver.measure_costs(store, "missing", in_process=True)
    assert len(measured) == 1


def test_network_that_cannot_be_measured_is_recorded_and_tried_again(store, monkeypatch):
    asked = []

    def measure(store, names, threads):
        asked.append(names)
        return record(names, float(len(asked)), {"ca": "OutOfMemoryError: 7 GiB"})

    monkeypatch.setattr(measuring_driver, "_measure_here", measure)
    assert len(run(store).finished) == 4
    data = study_data(store.folder)
    assert list(data.measured) == ["baseline"]
    assert data.unmeasured == {"ca": "OutOfMemoryError: 7 GiB"}
    run(store)
    assert asked == [["baseline", "ca"]] * 2
    assert read_costs(store).time == 2.0


@pytest.mark.parametrize("status", ["running", "waiting"])
def test_nothing_is_measured_while_a_trial_is_left(tmp_path, measured, status):
    store = Store.prepare(tmp_path / "study", study())
    claim_next(store).finish({1: {"top1": 50.0}})
    if status == "running":
        for _ in range(3):
            claim_next(store, ELSEWHERE)
    assert status in {trial.status for trial in store.trials()}
    measuring_driver.measure_costs(store, "missing", in_process=True)
    assert measured == []


def test_trials_that_run_meanwhile_spoil_the_figures(store, monkeypatch):
    asked = []
    more = study(seeds=3)

    def measure(store, names, threads):
        asked.append(names)
        if len(asked) == 1:
            finish(Store.prepare(store.folder, more))
        if len(asked) == 3:
            Store.prepare(store.folder, study(seeds=4))
        return record(names, float(len(asked)))

    monkeypatch.setattr(measuring_driver, "_measure_here", measure)
    run(store)
    assert len(asked) == 2
    assert read_costs(store).time == 2.0
    run(store, more, measure="again")
    assert len(asked) == 3
    assert read_costs(store).time == 2.0


def test_other_process_that_measures_is_waited_for(store, measured, monkeypatch):
    waited = []
    with claim_measuring(store, ELSEWHERE) as theirs:

        def sleep(seconds):
            waited.append(seconds)
            if len(waited) == 2:
                assert theirs.record(record(["baseline", "ca"], 77.0))

        monkeypatch.setattr(measuring_driver.time, "sleep", sleep)
        run(store)
    assert (len(waited), measured) == (2, [])
    assert read_costs(store).time == 77.0


def test_dead_process_loses_the_right_to_measure(store, measured):
    with claim_measuring(store, ELSEWHERE) as theirs:
        with store.transaction(write=True) as connection:
            connection.execute("UPDATE measuring SET heartbeat = heartbeat - 1000")
        run(store)
        assert measured == [["baseline", "ca"]]
        assert not theirs.record(record(["baseline", "ca"], 77.0))
    assert read_costs(store).time == 1.0


def test_heartbeat_keeps_the_right_to_measure(store):
    with claim_measuring(store, ELSEWHERE) as theirs:
        with store.transaction(write=True) as connection:
            connection.execute("UPDATE measuring SET heartbeat = heartbeat - 1000")
        theirs.heartbeat()
        with claim_measuring(store) as mine:
            assert mine is None


def test_failure_to_measure_is_told_and_does_not_fail_the_study(store, measured, monkeypatch):
    from visgraft.study import facts

    monkeypatch.undo()

    def lost(recipe, progress):
        raise OSError("the images are gone")

    monkeypatch.setattr(facts, "load_images", lost)
    with pytest.warns(UserWarning, match=r"could not be measured \(the images are gone\)"):
        assert len(run(store).finished) == 4
    assert read_costs(store).costs == {}
    with claim_measuring(store) as claim:
        assert claim is not None


def test_interruption_gives_the_right_to_measure_back(store, monkeypatch):
    def stop(store, names, threads):
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring_driver, "_measure_here", stop)
    with pytest.raises(StudyInterrupted, match="run the same command again"):
        run(store)
    with claim_measuring(store, ELSEWHERE) as claim:
        assert claim is not None


def test_network_that_kills_its_process_is_left_out(store, monkeypatch):
    asked = []

    def ask(store, names, threads):
        asked.append((list(names), threads))
        if "ca" in names:
            return None, "ca", -9
        return record(names, 1.0, {"x": "why"}), None, 0

    store.settle("threads", "3")
    monkeypatch.setattr(measuring_driver, "_ask", ask)
    run_study(study(), store.folder, workers=1, progress=False)
    assert asked == [(["baseline", "ca"], 3), (["baseline"], 3)]
    found = read_costs(store)
    assert list(found.costs) == ["baseline"]
    assert found.failures["x"] == "why"
    assert "died of signal 9 (out of memory?)" in found.failures["ca"]


@pytest.mark.parametrize(("at", "code"), [("ca", 1), (None, -9)])
def test_process_that_cannot_measure_is_told_with_its_last_words(store, monkeypatch, at, code):
    (store.folder / "workers.log").write_text("Traceback\nDataError: the folder is empty\n")
    monkeypatch.setattr(measuring_driver, "_ask", lambda *_: (None, at, code))
    with pytest.warns(UserWarning, match=f"ended with {code}: DataError: the folder is empty"):
        run_study(study(), store.folder, workers=1, progress=False)
    assert read_costs(store).failures == {}
