import os
import re
import sys

import pytest
import torch

from tests.study.tiny import numbers, recipe, study
from visgraft.study import execution, local
from visgraft.study.claims import claim_next
from visgraft.study.errors import StudyError
from visgraft.study.execution import StudyInterrupted, run_study
from visgraft.study.local import LocalExecutor
from visgraft.study.store import Store


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The tiny study, run in this process without interruption."""
    folder = tmp_path_factory.mktemp("unbroken")
    result = run_study(study(), folder, workers=0, threads=1, progress=False)
    assert [trial.status for trial in result.trials] == ["finished"] * 4
    return folder


def test_trials_are_paired_and_recorded(unbroken):
    store = Store.open(unbroken)
    by_seed = {}
    for trial in store.trials():
        by_seed.setdefault(trial.seed, []).append(trial)
        assert (trial.attempts, trial.epochs) == (1, 2)
        assert sorted(os.listdir(store.trial_folder(trial.variant, trial.seed)))
    for baseline, variant in by_seed.values():
        assert baseline.init_digest == variant.init_digest
        assert baseline.order_digest == variant.order_digest
        assert baseline.params < variant.params
        assert baseline.macs < variant.macs
    assert by_seed[0][0].init_digest != by_seed[1][0].init_digest
    assert by_seed[0][0].order_digest != by_seed[1][0].order_digest
    environment = store.environment()
    assert environment["threads"] == 1
    assert environment["torch"] == torch.__version__
    (start, end) = (c[3] for c in store.curves() if c[:2] == ("ca", 1))
    assert start.keys() == end.keys() == {"train_loss", "loss", "top1", "top5", "lr", "seconds"}
    assert store.final("top1")["ca", 1] == end["top1"]


def test_finished_study_is_not_run_again(unbroken, monkeypatch):
    before = (unbroken / "study.sqlite").read_bytes()
    monkeypatch.setattr(execution, "preflight", None)
    result = run_study(study(), unbroken, progress=False)
    assert len(result.finished) == 4
    assert result.failed == []
    assert (unbroken / "study.sqlite").read_bytes() == before


def test_lost_database_is_rebuilt_from_the_folders(unbroken, tmp_path):
    wanted = numbers(unbroken)
    database = unbroken / "study.sqlite"
    kept = database.read_bytes()
    times = {p: p.stat().st_mtime_ns for p in unbroken.glob("trials/*/last.ckpt")}
    assert len(times) == 4
    database.unlink()
    try:
        run_study(study(), unbroken, workers=0, threads=1, progress=False)
        assert numbers(unbroken) == wanted
        assert {p: p.stat().st_mtime_ns for p in times} == times
    finally:
        database.write_bytes(kept)


def test_seeds_added_later(unbroken, tmp_path):
    fewer = study(seeds=1, recipe=recipe(epochs=1))
    run_study(fewer, tmp_path, workers=0, threads=1, progress=False)
    first = numbers(tmp_path)
    more = study(seeds=2, recipe=recipe(epochs=1))
    result = run_study(more, tmp_path, workers=0, progress=False)
    assert [t.attempts for t in result.trials] == [1, 1, 1, 1]
    for before, after in zip(first, numbers(tmp_path), strict=True):
        assert before.items() <= after.items()
    with pytest.raises(StudyError, match="seeds 1 are missing"):
        run_study(fewer, tmp_path, workers=0, progress=False)


def test_wrong_variants_are_found_before_anything_is_trained(tmp_path):
    ca = {"block": "coord_attention", "at": "block_end"}
    wrong = study(
        variants={
            "a": {"block": "cot", "at": "layer9.*.conv2"},
            "b": {"grafts": [ca, {"block": "cot", "at": "layer8.*"}]},
            "c": ca,
        }
    )
    folder = tmp_path / "runs" / "study"
    with pytest.raises(StudyError) as raised:
        run_study(wrong, folder, progress=False)
    first, *lines = str(raised.value).splitlines()
    assert first == "study study: 2 errors"
    text = "\n".join(lines)
    assert re.search(r"variants\.a: .*layer9\.\*\.conv2", text)
    assert re.search(r"variants\.b\.grafts\[1\]: .*layer8", text)
    assert "variants.c" not in text
    assert os.listdir(tmp_path) == []
    mended = study(variants={"a": ca | {"at": "layer4.*.bn2"}, "b": ca}, recipe=recipe(epochs=1))
    assert len(run_study(mended, folder, workers=0, progress=False).finished) == 6


def test_wrong_network_is_reported_once(tmp_path):
    with pytest.raises(StudyError, match=r"1 error\n  recipe: .*no_such_argument"):
        run_study(study(model_args={"no_such_argument": 1}), tmp_path, progress=False)


def test_failing_variant_is_recorded_and_tried_again(tmp_path, monkeypatch):
    plan = study(seeds=1, recipe=recipe(epochs=1))
    from visgraft.study import trial

    def fail(recipe, *args, **kwargs):
        if recipe.grafts:
            raise RuntimeError("no luck today")
        return train(recipe, *args, **kwargs)

    train = trial.train
    monkeypatch.setattr(trial, "train", fail)
    result = run_study(plan, tmp_path, workers=0, threads=1, progress=False)
    assert [(t.variant, t.status) for t in result.finished] == [("baseline", "finished")]
    (failed,) = result.failed
    assert failed.error.startswith("Traceback")
    assert failed.error.rstrip().endswith("RuntimeError: no luck today")
    monkeypatch.undo()
    result = run_study(plan, tmp_path, workers=0, threads=1, progress=False)
    assert [t.attempts for t in result.trials] == [1, 2]
    assert len(result.finished) == 2


def test_interruption_gives_the_trial_back(tmp_path, monkeypatch):
    from visgraft.study import trial

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(trial, "train", stop)
    with pytest.raises(StudyInterrupted, match="run the same command again to go on"):
        run_study(study(), tmp_path, workers=0, threads=1, progress=False)
    assert {t.status for t in Store.open(tmp_path).trials()} == {"waiting"}


def test_unfair_start_is_an_error(tmp_path, monkeypatch):
    from visgraft.study import facts

    def spoil(model, recipe, data):
        with torch.no_grad():
            model.conv1.weight[0, 0, 0, 0] += 1e-6

    monkeypatch.setattr(facts, "add_grafts", spoil)
    with pytest.raises(StudyError, match=r"grafting changed conv1\.weight, which is outside"):
        run_study(study(), tmp_path, workers=0, progress=False)


def test_changed_images_are_refused(tmp_path):
    store = Store.prepare(tmp_path, study())
    claim_next(store).fail("Traceback")
    store.settle("data", "another fingerprint")
    with pytest.raises(StudyError, match="the images in fashion_mini are not those that"):
        run_study(study(), tmp_path, progress=False)


def test_other_threads_and_other_versions_are_told(tmp_path):
    store = Store.prepare(tmp_path, study(seeds=1, recipe=recipe(epochs=1)))
    store.settle("threads", "7")
    claim_next(store).record_environment({"torch": "1.13", "threads": 7})
    with store.transaction(write=True) as connection:
        connection.execute("UPDATE trials SET status = 'waiting', token = NULL")
    with pytest.warns(UserWarning, match="study: ") as told:
        run_study(store.study, tmp_path, workers=0, threads=1, progress=False)
    texts = [str(warning.message) for warning in told]
    assert any("ran with 7 threads, now with 1" in text for text in texts)
    assert any(f"torch 1.13 then, {torch.__version__} now" in text for text in texts)


@pytest.mark.parametrize(
    ("options", "text"),
    [({"workers": -1}, "workers must be at least 0"), ({"threads": 0}, "threads must be at least")],
)
def test_options_out_of_range(tmp_path, options, text):
    with pytest.raises(StudyError, match=text):
        run_study(study(), tmp_path / "new", progress=False, **options)
    assert not (tmp_path / "new").exists()


def test_workers_that_cannot_start_end_the_study(tmp_path, monkeypatch):
    store = Store.prepare(tmp_path, study())
    monkeypatch.setattr(local, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(StudyError, match="workers died in a row without finishing an epoch"):
        LocalExecutor(2, 1).run(store, lambda: None)
    assert {t.status for t in store.trials()} == {"waiting"}
