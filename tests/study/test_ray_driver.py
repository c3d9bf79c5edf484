"""The driver of a cluster, told what happens by a script instead of by Ray."""

import json
import sys
from types import SimpleNamespace

import pytest

from tests.study.made_up_ray import METRICS, FakeRay, RayError, RayTaskError, facts_of, well
from tests.study.tiny import FIELDS, recipe, study
from visgraft.study import claims
from visgraft.study.claims import MAX_CRASHES, claim_next
from visgraft.study.cluster import executor as ray_executor
from visgraft.study.cluster.executor import RayExecutor
from visgraft.study.cluster.machines import RayCluster, Share, connect, gpus_per_trial
from visgraft.study.cluster.storage import Storage
from visgraft.study.errors import StudyError
from visgraft.study.plan import load_study, trial_spec
from visgraft.study.store import Store


@pytest.fixture
def store(tmp_path):
    plan = study(recipe=recipe(epochs=2))
    return Store.prepare(tmp_path / "study", plan)


@pytest.fixture
def ray(monkeypatch):
    monkeypatch.setattr(ray_executor, "POLL_SECONDS", 0.0)

    def install(script, *nodes):
        fake = FakeRay(script, *(nodes or [("n0", 4, 0)]))
        monkeypatch.setitem(sys.modules, "ray", fake)
        monkeypatch.setitem(sys.modules, "ray.exceptions", fake.exceptions)
        return fake

    return install


def run(store, **options):
    executor = RayExecutor(RayCluster(), Share(1, 0.0), "images", **options)
    executor.run(store, sys.modules["ray"].check_time)
    return {(trial.variant, trial.seed): trial for trial in store.trials()}


def test_driver_takes_down_what_the_tasks_tell(store, ray):
    fake = ray(well)
    trials = run(store)
    assert {t.status for t in trials.values()} == {"finished"}
    assert trials["ca", 1].params == 7
    assert trials["ca", 1].init_digest == "w1"
    assert trials["ca", 1].result == {"top1": 20.0}
    assert [c[3] for c in store.curves() if c[:2] == ("ca", 1)] == [METRICS[1], METRICS[2]]
    assert store.environment() == {"torch": "2"}
    options = fake.options_seen[0]
    assert (options["num_cpus"], options["num_gpus"], options["max_retries"]) == (1, 0, 0)
    variables = options["runtime_env"]["env_vars"]
    assert variables["OMP_NUM_THREADS"] == "1"
    assert variables["CUDA_VISIBLE_DEVICES"] == ""
    assert not list(store.folder.glob(".seen-*"))


def test_no_more_trials_than_there_is_room_for(store, ray):
    running = []

    def script(job, attempt):
        running.append([t.status for t in store.trials()].count("running"))
        return well(job)

    ray(script, ("n0", 2, 0), ("n1", 1, 0))
    assert RayExecutor(RayCluster(), Share(2, 0.0), "images").room() == 1
    assert RayExecutor(RayCluster(), Share(1, 0.0), "images").room() == 3
    run(store)
    assert running == [1, 2, 3, 1]
    assert RayExecutor(RayCluster(), Share(1, 0.0), "images", most=2).room() == 2


def test_driver_does_not_read_all_trials(store, ray, monkeypatch):
    def never(*_):
        raise AssertionError("all trials were read")

    ray(well)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "trials", never)
        RayExecutor(RayCluster(), Share(1, 0.0), "images").run(store, lambda: None)
    assert store.counts() == {"finished": 4}


def test_driver_waits_for_trials_that_run_when_none_waits(store, ray):
    fake, silent = ray(well), iter(range(3))
    listen = fake.wait
    fake.wait = lambda streams, **how: (
        ([], streams) if next(silent, "") != "" else listen(streams, **how)
    )
    assert {trial.status for trial in run(store).values()} == {"finished"}


def test_time_of_a_trial_begins_when_its_process_is_ready(store, ray, monkeypatch):
    now, heard = [0.0], []
    ticking = SimpleNamespace(monotonic=lambda: now[0], time=lambda: 0.0)
    monkeypatch.setattr(claims, "time", ticking)
    monkeypatch.setattr(ray_executor, "HEARTBEAT_SECONDS", -1.0)  # at each look
    fake = ray(well)

    def one_word(streams, **how):
        now[0] += 5.0
        heard.append(0)
        return (streams[:1], streams[1:]) if len(heard) % 2 else ([], streams)

    fake.wait = one_word
    run(store, most=1)
    assert {trial.seconds for trial in store.trials()} == {50.0}  # ten looks until the last word


def test_trials_are_called_by_all_that_decides_about_their_outcome(store, ray, tmp_path):
    names = []
    for images, fields in (
        ("images", {}),
        ("images", {"workers": 1, "loggers": "csv"}),
        ("images", {"batch_size": 20}),
        ("others", {}),
    ):
        fake = ray(well)
        plan = study(recipe=recipe(epochs=2, **fields))
        new = Store.prepare(tmp_path / str(len(names)), plan)
        RayExecutor(RayCluster(), Share(1, 0.0), images).run(new, fake.check_time)
        names.append([job["trial"] for job in fake.jobs])
    assert names[0] == names[1]
    assert len(set(names[0] + names[2] + names[3])) == 12


def test_what_another_run_adds_meanwhile_is_trained_as_it_says(store, ray):
    wider = {"more": {"model_args": {"channels": [9, 9, 9, 9]}}}

    def script(job, attempt):
        if not Store.open(store.folder).study.variants.keys() & wider:
            plan = study(recipe=recipe(epochs=2), variants=FIELDS["variants"] | wider)
            Store.prepare(store.folder, plan)
        return well(job)

    fake = ray(script)
    trials = run(store, most=1)
    assert {trials["more", seed].status for seed in (0, 1)} == {"finished"}
    (told,) = (job["study"] for job in fake.jobs if (job["variant"], job["seed"]) == ("more", 0))
    assert trial_spec(load_study(json.loads(told)), "more", 0).recipe.model_args == {
        "channels": [9, 9, 9, 9]
    }
    assert len({job["trial"] for job in fake.jobs}) == len(fake.jobs) == 6


def test_dead_attempt_is_followed_by_another(store, ray):
    def script(job, attempt):
        return [*well(job)[:3], RayError("node died\nmore")] if attempt == 1 else well(job)

    trials = run(store) if ray(script) else {}
    assert {(t.status, t.attempts, t.epochs) for t in trials.values()} == {("finished", 2, 2)}


def test_deaths_in_a_row_fail_a_trial_and_an_epoch_breaks_the_row(store, ray):
    def script(job, attempt):
        if (job["variant"], job["seed"]) == ("ca", 0):
            return [RayError(f"the node {attempt} died\nand more")]
        if (job["variant"], job["seed"]) == ("ca", 1) and attempt <= 2 * MAX_CRASHES:
            return [*well(job)[:3], RayError("died")]
        return well(job)

    ray(script)
    trials = run(store)
    assert trials["ca", 0].status == "failed"
    assert trials["ca", 0].attempts == MAX_CRASHES
    assert trials["ca", 0].error.startswith("The process died 3 times in this trial")
    assert trials["ca", 0].error.endswith("the node 3 died")
    assert trials["ca", 1].status == "finished"
    assert trials["ca", 1].attempts == 2 * MAX_CRASHES + 1


def test_attempt_that_ends_without_a_word_counts_as_dead(store, ray):
    ray(lambda job, attempt: well(job) if attempt > 1 else well(job)[:2])
    assert {t.attempts for t in run(store).values()} == {2}


def test_failed_trial_keeps_its_traceback_and_the_others_go_on(store, ray):
    def script(job, attempt):
        return [("failed", "Traceback: no luck")] if job["variant"] == "ca" else well(job)

    ray(script)
    trials = run(store)
    assert [trials["ca", seed].error for seed in (0, 1)] == ["Traceback: no luck"] * 2
    assert [trials["baseline", seed].status for seed in (0, 1)] == ["finished"] * 2


def test_error_of_ray_around_a_task_fails_the_trial(store, ray):
    ray(lambda job, attempt: [RayTaskError("cannot unpickle")])
    assert {t.error for t in run(store).values()} == {"cannot unpickle"}


def test_unfair_trial_is_stopped_and_failed(store, ray):
    def script(job, attempt):
        if (job["variant"], job["seed"]) == ("ca", 0):
            return [("facts", facts_of(job) | {"init_digest": "other"}), *well(job)[2:]]
        return well(job)

    fake = ray(script)
    trials = run(store, most=1)
    assert {key: trial.status for key, trial in trials.items()} == {
        ("baseline", 0): "finished",
        ("ca", 0): "failed",
        ("baseline", 1): "finished",
        ("ca", 1): "finished",
    }
    assert trials["ca", 0].error.startswith("Traceback")
    assert "baseline seed 0 and ca seed 0 start from different weights" in trials["ca", 0].error
    assert trials["ca", 0].epochs == 0
    assert fake.cancelled == [("ca", 0)]


def test_machine_that_refuses_gets_no_more_trials(store, ray):
    refusal = {
        "machine": "n0",
        "name": "laptop",
        "reason": "cannot load /data (none); put it there",
    }

    def script(job, attempt):
        if attempt == 1:
            return [("refused", refusal)]
        with store.transaction() as connection:
            blamed.extend(connection.execute("SELECT id FROM trials WHERE crashes > 0"))
        return well(job)

    blamed = []
    fake = ray(script, ("n0", 1, 0), ("n1", 4, 0))
    with pytest.warns(UserWarning, match=r"laptop cannot load /data .* It gets no trials") as told:
        trials = run(store)
    assert len(told) == 1
    assert {t.status for t in trials.values()} == {"finished"}
    assert fake.options_seen[-1] == {"label_selector": {"ray.io/node-id": "!in(n0)"}}
    assert blamed == []


def test_study_ends_when_all_machines_refuse(store, ray):
    refusal = {"machine": "n0", "name": "laptop", "reason": "does not see /x; give --storage"}
    ray(lambda job, attempt: [("refused", refusal)])
    with (
        pytest.warns(UserWarning, match="laptop does not see /x"),
        pytest.raises(StudyError, match=r"no machine is left .*\n  laptop does not see /x; give"),
    ):
        run(store)
    assert {t.status for t in store.trials()} == {"waiting"}


def test_study_ends_when_the_machines_stay_away(store, ray, monkeypatch):
    fake = ray(well)
    monkeypatch.setattr(ray_executor, "PATIENCE", 0.01)
    fake.alive.clear()
    with pytest.raises(StudyError, match=r"no machine of the cluster has had 1 CPU, which a trial"):
        run(store)
    assert {t.status for t in store.trials()} == {"waiting"}


def test_trial_that_another_driver_took_is_let_go(store, ray):
    def script(job, attempt):
        with store.transaction(write=True) as connection:
            connection.execute(
                "UPDATE trials SET token = 'other', status = 'finished'"
                " WHERE variant = ? AND seed = ?",
                (job["variant"], job["seed"]),
            )
        return well(job)

    fake = ray(script)
    trials = run(store)
    assert len(fake.cancelled) == 4
    assert {t.epochs for t in trials.values()} == {0}


def test_interruption_cancels_and_gives_back(store, ray):
    def stop(*args, **options):
        raise KeyboardInterrupt

    fake = ray(well)
    fake.wait = stop
    with pytest.raises(KeyboardInterrupt):
        run(store)
    assert sorted(fake.cancelled) == [("baseline", 0), ("baseline", 1), ("ca", 0), ("ca", 1)]
    assert {t.status for t in store.trials()} == {"waiting"}
    assert not list(store.folder.glob(".seen-*"))


def test_finished_trial_is_brought_home_before_it_counts(store, ray, tmp_path):
    storage = Storage(str(tmp_path / "away"))
    work = tmp_path / "work"
    work.mkdir()

    def script(job, attempt):
        (work / "last.ckpt").write_bytes(f"{job['variant']} {job['seed']}".encode())
        if job["seed"] == 0:
            storage.trial(job["trial"]).save(work, "000001-a", 2, finished=True)
        return well(job)

    ray(script)
    with pytest.raises(StudyError, match=r"-seed1-\w+ is finished, but this machine does not find"):
        run(store, storage=storage, most=1)
    assert (store.trial_folder("ca", 0) / "last.ckpt").read_bytes() == b"ca 0"
    status = {(t.variant, t.seed): t.status for t in store.trials()}
    assert status == {
        ("baseline", 0): "finished",
        ("ca", 0): "finished",
        ("baseline", 1): "waiting",
        ("ca", 1): "waiting",
    }


def test_what_was_trained_at_home_goes_along(store, ray, tmp_path):
    storage = Storage(str(tmp_path / "away"))
    home = store.trial_folder("ca", 0)
    home.mkdir(parents=True)
    (home / "last.ckpt").write_bytes(b"half")
    found = {}

    def script(job, attempt):
        new = tmp_path / f"{job['variant']}{job['seed']}"
        found[job["variant"], job["seed"]] = storage.trial(job["trial"]).restore(new)
        return [("failed", "enough")]

    ray(script)
    run(store, storage=storage)
    assert found.pop(("ca", 0)) == 0
    assert (tmp_path / "ca0" / "last.ckpt").read_bytes() == b"half"
    assert set(found.values()) == {None}


def test_machine_without_visgraft_says_so(ray, monkeypatch):
    fake = ray(well)
    fake.get_runtime_context = lambda: SimpleNamespace(get_node_id=lambda: "n7")
    monkeypatch.setitem(sys.modules, "visgraft.study.cluster.task", None)
    arrived, (word, content) = ray_executor._attempt_function()({})
    assert arrived == ("arrived", {"machine": "n7"})
    assert word == "refused"
    assert content["machine"] == "n7"
    assert content["reason"].startswith("cannot import visgraft (")
    assert content["reason"].endswith("install visgraft[ray] there")


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (
            Share(64, 0),
            r"asks for 64 CPUs, and no machine .* \(the largest is 10\.0\.0\.1 with 8 CPU",
        ),
        (Share(1, 1), r"asks for 1 CPU and 1 GPU, and no machine of the cluster has that"),
        (Share(9, 0), r"asks for 9 CPUs"),
    ],
)
def test_trial_that_fits_nowhere_is_told(ray, share, text):
    ray(well, ("n0", 4, 0), ("n1", 8, 0))
    with pytest.raises(StudyError, match=text):
        RayCluster().check_room(share)
    RayCluster().check_room(Share(8, 0))


def test_resources_per_trial(ray):
    ray(well, ("n0", 16, 4), ("n1", 4, 0))
    cluster = RayCluster()
    assert cluster.usual_threads(10) == 2
    assert cluster.usual_threads(100) == 1
    assert cluster.usual_threads(1) == 16
    assert [m.room(Share(2, 0.5)) for m in cluster.machines()] == [8, 0]
    assert [m.room(Share(4, 1)) for m in cluster.machines()] == [4, 0]
    assert [m.room(Share(4, 0)) for m in cluster.machines()] == [4, 1]
    on = {d: study(recipe=recipe(device=d)).recipe for d in ("auto", "cpu", "cuda")}
    assert gpus_per_trial(on["auto"], None, cluster) == 1
    assert gpus_per_trial(on["cpu"], None, cluster) == 0
    assert gpus_per_trial(on["auto"], 0.5, cluster) == 0.5
    for device, wanted, text in [
        ("auto", 2, "trains on one GPU, or shares one .* got 2"),
        ("cpu", 1, r"device: cpu\), so gpus must be 0, got 1"),
        ("cuda", 0, r"device: cuda\), so gpus must be more than 0"),
    ]:
        with pytest.raises(StudyError, match=text):
            gpus_per_trial(on[device], wanted, cluster)


def test_no_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        StudyError, match=r"needs Ray; install it with: pip install 'visgraft\[ray\]'"
    ):
        connect("auto").__enter__()


def test_crash_of_a_claim_that_no_longer_holds_changes_nothing(store):
    claim = claim_next(store)
    claim.crash("lost")
    assert claim_next(store).attempt == 2
    claim.crash("late")  # its trial is another's by now
    assert [t.status for t in store.trials()].count("running") == 1
