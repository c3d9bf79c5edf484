import csv
import io
import re
from dataclasses import replace

import pytest
from scipy import stats

from tests.study.made_up_study import changed, made_up
from visgraft.cli.main import main
from visgraft.study.errors import StudyError
from visgraft.study.plan import load_study
from visgraft.study.reports.comparing import _INDIFFERENT, compare_studies
from visgraft.study.reports.comparing_text import (
    comparison_csv,
    comparison_markdown,
    comparison_text,
)
from visgraft.study.reports.data import summarise
from visgraft.study.store import Store
from visgraft.tasks import recipe as recipes


def shifted(data, by, variant="up"):
    """The same study with other numbers of one network."""
    trials = tuple(
        replace(t, value=t.value + by[t.seed]) if t.variant == variant else t for t in data.trials
    )
    return replace(data, trials=trials)


def with_recipe(study, **fields):
    return replace(study, recipe=study.recipe | fields)


def network(comparison, name):
    return next(n for n in comparison.networks if n.a.name == name)


def test_same_study_twice_is_equal_to_the_last_digit():
    found = compare_studies(made_up(), made_up())
    assert found.paired
    assert found.differing == found.only_a == found.only_b == ()
    assert [n.a.name for n in found.networks] == ["baseline", "up", "same"]
    assert {n.difference for n in found.networks} == {0.0}
    assert {n.words for n in found.networks} == {"equal to the last digit, 4 seeds"}
    assert "Nothing that was recorded explains a difference" in found.reason


def test_paired_difference_is_that_of_the_seeds():
    by = (0.5, 0.7, 0.6, 0.4)
    other = shifted(made_up(environments=[{"visgraft": "0.2.0", "torch": "2.15.0+cpu"}]), by)
    found = compare_studies(made_up(), other)
    up = network(found, "up")
    test = stats.ttest_1samp(by, 0)
    assert found.paired
    assert up.seeds == (0, 1, 2, 3)
    assert up.difference == pytest.approx(0.55)
    assert (up.low, up.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert up.p == pytest.approx(test.pvalue)
    assert up.p_holm == pytest.approx(3 * test.pvalue)  # three networks
    assert up.words == "better in B, p = 0.01 after Holm"
    assert {d.what: (d.a, d.b, d.decides) for d in found.differing} == {
        "environment.visgraft": ("0.1.0", "0.2.0", False),
        "environment.threads": ("1", "not recorded", False),
    }
    assert "comes from environment.visgraft, environment.threads, or from chance" in found.reason


def test_only_common_seeds_are_paired():
    data = made_up()
    late = replace(
        data,
        seeds=(2, 3, 4),
        trials=tuple(t for t in data.trials if t.seed >= 2),
    )
    found = compare_studies(data, shifted(late, {2: 1.0, 3: 2.0}))
    assert found.paired
    assert network(found, "up").seeds == (2, 3)
    assert network(found, "up").difference == pytest.approx(1.5)
    assert [d.what for d in found.differing] == ["seeds"]


def test_other_recipe_is_not_paired():
    by = (0.5, 0.7, 0.6, 0.4)
    other = with_recipe(shifted(made_up(), by), lr=0.1, workers=7)
    found = compare_studies(made_up(), other)
    up = network(found, "up")
    a, b = list(up.a.values.values()), list(up.b.values.values())
    test = stats.ttest_ind(b, a, equal_var=False)
    assert not found.paired
    assert up.seeds == ()
    assert up.difference == pytest.approx(0.55)
    assert (up.low, up.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert up.p == pytest.approx(test.pvalue)
    assert up.words == "no evidence of a difference"
    assert [(d.what, d.a, d.b) for d in found.differing] == [("recipe.lr", "None", "0.1")]
    assert found.reason.startswith("Not paired: recipe.lr differs. So the numbers of one seed do")
    assert "Welch" in found.reason
    assert "validation images" not in found.reason


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (made_up(fingerprint="other"), r"data differs.*validation images are not the same"),
        (made_up(fingerprint=None), r"data differs"),
        (
            made_up(recipe={"model": "x", "data": "y", "epochs": 3}),
            r"recipe\.model, recipe\.epochs",
        ),
        (changed(made_up(), "up", 2, init_digest="x"), r"initial weights of up differ for seed 2"),
        (
            changed(made_up(), "same", 1, order_digest="x"),
            r"images of same differ for seed 1",
        ),
        (made_up(seeds=(0, 9)), r"the studies share one seed"),
        (made_up(seeds=(8, 9)), r"the studies share no seed"),
    ],
)
def test_why_studies_are_not_paired(other, text):
    found = compare_studies(made_up(), other)
    assert not found.paired
    assert re.search(rf"^Not paired: .*{text}", found.reason)


def test_data_that_nobody_recorded_are_not_the_same():
    found = compare_studies(made_up(fingerprint=None), made_up(fingerprint=None))
    assert not found.paired
    assert [(d.what, d.a, d.b) for d in found.differing] == [
        ("data", "not recorded", "not recorded")
    ]


def test_data_at_another_place_are_the_same_data():
    other = with_recipe(made_up(), data="/elsewhere/images")
    found = compare_studies(made_up(), other)
    assert found.paired
    assert [(d.what, d.decides) for d in found.differing] == [("recipe.data", False)]


def test_fields_that_do_not_touch_the_numbers_are_those_of_the_recipe():
    assert recipes._UNSEEN == _INDIFFERENT


def test_networks_are_matched_by_what_they_change():
    data = made_up()
    renamed = replace(
        data,
        variants={"rise": "up at block_end", "same": "another block at block_end"},
        trials=tuple(replace(t, variant=t.variant.replace("up", "rise")) for t in data.trials),
    )
    found = compare_studies(data, renamed)
    assert [(n.a.name, n.b.name) for n in found.networks] == [
        *(("baseline", "baseline"), ("up", "rise"))
    ]
    assert [row.name for row in found.only_a] == ["same"]
    assert [row.name for row in found.only_b] == ["same"]
    assert "up (B: rise)" in comparison_text(found)


def test_same_name_is_taken_before_the_same_change():
    twice = {"one": "a block", "two": "a block"}
    trials = made_up().trials
    data = made_up(variants=twice)
    trials = tuple(
        replace(t, variant={"up": "one", "same": "two"}.get(t.variant, t.variant)) for t in trials
    )
    a = replace(data, trials=trials)
    b = replace(a, variants=dict(reversed(twice.items())))
    assert [(n.a.name, n.b.name) for n in compare_studies(a, b).networks][1:] == [
        ("one", "one"),
        ("two", "two"),
    ]


def test_metric_of_the_first_study_decides():
    data = made_up()
    trials = tuple(
        replace(t, value=1.0, metrics={"top1": t.value + 1, "top5": 99.0}) for t in data.trials
    )
    found = compare_studies(data, replace(data, metric="top5", trials=trials))
    assert network(found, "up").b.mean == pytest.approx(93.75)
    assert network(found, "up").difference == pytest.approx(1.0)
    assert ("metric", "top1", "top5") in [(d.what, d.a, d.b) for d in found.differing]


def test_lower_loss_is_better():
    data = made_up(metric="loss")
    up = network(compare_studies(data, shifted(data, (-0.5, -0.7, -0.6, -0.4))), "up")
    assert up.difference == pytest.approx(-0.55)
    assert up.words.startswith("better in B")


@pytest.mark.parametrize("count", [0, 1, 4])
def test_unfinished_studies(count):
    found = compare_studies(made_up(count), shifted(made_up(), (1, 2, 3, 4)))
    one = "no statement possible (+1.00 points)"
    words = {0: "no numbers in both studies yet", 1: "no numbers in both studies yet", 4: one}
    assert network(found, "up").words == words[count]
    assert network(found, "baseline").seeds == {0: (), 1: (0,), 4: (0, 1)}[count]
    unpaired = compare_studies(made_up(count), with_recipe(made_up(), lr=1))
    assert network(unpaired, "up").p is None
    text = comparison_text(found)
    assert "nan" not in text.lower()
    assert f"{count} of 12 trials finished" in text


def test_studies_of_two_tasks_are_refused():
    with pytest.raises(StudyError, match=r"is a study of classification and .* of detection; comp"):
        compare_studies(made_up(), made_up(task="detection", metric="AP"))


def test_text_has_the_numbers():
    found = compare_studies(made_up(), shifted(made_up(name="Second"), (0.5, 0.7, 0.6, 0.4)))
    lines = comparison_text(found).splitlines()
    up = next(line for line in lines if line.startswith("up"))
    columns = [part.strip() for part in up.split("  ") if part.strip()]
    assert columns == [
        *("up", "92.75 ± 0.93 (4)", "93.30 ± 1.02 (4)", "+0.55 [+0.34, +0.76]", "0.010"),
        *("better in B, p = 0.01 after Holm", "+2.00 [+1.87, +2.13]", "+2.55 [+2.27, +2.83]"),
    ]
    assert lines[0] == "A: A study (runs/a study). All 12 trials finished."
    assert "B: Second (runs/a study). All 12 trials finished." in lines
    assert max(map(len, lines[:6])) < 120


def test_unfair_study_is_told():
    text = comparison_text(compare_studies(made_up(), changed(made_up(), "up", 1, init_digest="x")))
    assert "B is not fair, do not trust it: The initial weights outside the grafts differ" in text


def test_markdown_is_escaped():
    evil = made_up(name="a|b<img>", variants={"up": "x|y", "same": "same at block_end"})
    text = comparison_markdown(compare_studies(evil, made_up()))
    assert text.startswith("# a\\|b&lt;img> and A study\n")
    assert "| up | x\\|y | 92.75 ± 0.93 (4) | +2.00 \\[+1.87, +2.13\\] |" in text
    assert "<img" not in text.replace("a|b<img>", "")


def test_csv_has_a_line_per_network():
    other = replace(made_up(), variants={"up": "up at block_end", "new": "new"})
    found = compare_studies(made_up(), shifted(other, (0.5, 0.7, 0.6, 0.4)))
    rows = list(csv.DictReader(io.StringIO(comparison_csv(found))))
    assert [(r["network"], r["network_b"]) for r in rows] == [
        *(("baseline", "baseline"), ("up", "up"), ("same", ""), ("", "new"))
    ]
    up = network(found, "up")
    assert float(rows[1]["difference_low"]) == up.low
    assert float(rows[1]["p_holm"]) == up.p_holm
    assert (rows[1]["paired"], rows[1]["pairs"], rows[1]["seeds_a"]) == ("yes", "4", "4")
    assert float(rows[1]["gain_b"]) == pytest.approx(2.55)
    assert (rows[2]["mean_b"], rows[3]["mean_a"], rows[3]["words"]) == ("", "", "only in one study")
    assert float(rows[2]["mean_a"]) == summarise(made_up()).rows[2].mean


def folder_of_a_study(folder, **recipe):
    study = load_study(
        {
            "recipe": {"data": "fashion_mini", "model": "resnet10_small", "epochs": 1, **recipe},
            "variants": {"gc": {"block": "global_context", "at": "block_end", "how": "after"}},
            "seeds": 2,
        }
    )
    Store.prepare(folder, study)
    return str(folder)


def test_command(tmp_path, capsys):
    a = folder_of_a_study(tmp_path / "a")
    b = folder_of_a_study(tmp_path / "b", lr=0.5)
    out = tmp_path / "changes.md"
    assert main(["study", "compare", a, b, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "recipe.lr" in printed
    assert "Not paired" in printed
    assert f"written: {out}" in printed
    assert out.read_text(encoding="utf-8").startswith("# study and study\n")
    assert main(["study", "compare", a, b, "--out", str(tmp_path / "x.csv")]) == 0
    assert (tmp_path / "x.csv").read_text().startswith("network,network_b,changes")


def test_command_refuses(tmp_path, capsys):
    a = folder_of_a_study(tmp_path / "a")
    assert main(["study", "compare", a, a, "--out", "x.html"]) != 0
    assert "must end with .md or .csv, got x.html" in capsys.readouterr().err
    assert main(["study", "compare", a, str(tmp_path / "none")]) != 0
    assert "holds no study" in capsys.readouterr().err
    assert main(["study", "compare", a, a, "--out", str(tmp_path / "no" / "x.md")]) != 0
    assert "cannot be written" in capsys.readouterr().err
