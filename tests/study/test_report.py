import csv
import io
import json
import math
import re
from dataclasses import replace
from html import unescape

import pytest

from tests.study.made_up_study import changed, made_up
from visgraft.study.claims import claim_next
from visgraft.study.errors import StudyError
from visgraft.study.plan import load_study
from visgraft.study.reports.data import Trial, summarise
from visgraft.study.reports.files import render_csv, render_markdown, render_trials_csv
from visgraft.study.reports.page import render_html
from visgraft.study.reports.plots import build_plots, pareto_front
from visgraft.study.reports.style import DARK, LIGHT
from visgraft.study.reports.writing import report, study_data, terminal_table
from visgraft.study.store import Store


def text_of(page):
    """What a reader sees, roughly."""
    body = re.sub(r"<(style|script)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", body)))


def figures_of(page):
    pattern = r'<script type="application/json" data-for="([\w-]+)">(.*?)</script>'
    return {name: json.loads(text) for name, text in re.findall(pattern, page, re.DOTALL)}


@pytest.fixture(scope="module")
def summary():
    return summarise(made_up())


@pytest.fixture(scope="module")
def page(summary):
    return render_html(summary)


def test_rows(summary):
    baseline, up, same = summary.rows
    assert (baseline.name, baseline.comparison, baseline.mean) == ("baseline", None, 90.75)
    assert (up.params, up.macs, up.seconds) == (1_250_000, 11_000_000, 61.5)
    assert up.sd == pytest.approx(0.9256, abs=1e-4)
    assert same.comparison.differences == pytest.approx((0.1, -0.1, 0, 0))


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ({"a": (1, 90), "b": (2, 91), "c": (3, 90.5)}, ["a", "b"]),
        ({"b": (2, 91), "a": (1, 91)}, ["a"]),
        ({"a": (1, 90), "b": (1, 91)}, ["b"]),
        ({"a": (1, 90), "b": (1, 90)}, ["a", "b"]),
        ({}, []),
    ],
)
def test_pareto_front(points, front):
    assert pareto_front(points, higher_is_better=True) == front
    mirrored = {name: (cost, -worth) for name, (cost, worth) in points.items()}
    assert pareto_front(mirrored, higher_is_better=False) == front


def test_page_is_self_contained(page):
    markup = re.sub(r"<script\b.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"""src\s*=|href\s*=\s*"[^#]|url\(|@import|https?:""", markup)
    assert "default-src 'none'" in page
    assert page.count("plotly.js v") == 1


def test_page_shows_the_numbers(page, summary):
    text = text_of(page)
    assert summary.headline in text
    assert summary.headline.startswith("Better than the baseline: up (+2.00 points [+1.87, +2.13])")
    assert "▲ better 92.75 sd 0.93 +2.00 [+1.87, +2.13]" in text
    assert "1.25 M +25.0 % 11.0 M +10.0 % 61.5 s +0.0 %" in text
    for comparison in summary.comparisons:
        assert comparison.statement in text
    for part in ("All 12 trials finished.", "f1n6e2", "resnet10_small", "one data split"):
        assert part in text
    assert "visgraft study run study.yaml --folder 'runs/a study'" in text
    assert "'torch==2.15.0'" in text


def test_table_can_be_sorted(page):
    table = page[page.index('<table class="sortable') : page.index("</table>")]
    buttons = re.findall(r'<th scope="col" aria-sort="none"[^>]*><button type="button"', table)
    assert len(buttons) == table.count("<button") == 9
    rows = re.findall(r'<tr[^>]*>\s*<th scope="row".*?</tr>', table, re.DOTALL)
    keys = [re.findall(r'data-key="([^"]*)"', row) for row in rows]
    assert keys[0] == ["baseline", "", "90.75", "", "", "", "1000000", "10000000", "61.5"]
    assert keys[2][:2] == ["same", "unclear"]
    assert all(len(row) == len(buttons) for row in keys)


def test_plots(page):
    figures = figures_of(page)
    assert list(figures) == [
        "differences",
        "against-params",
        "against-macs",
        "curves-top1",
        "curves-train_loss",
    ]
    same, same_mean, up, up_mean = figures["differences"]["data"]
    assert up["x"] == [2.0, 2.1, 1.9, 2.0]
    assert up_mean["x"] == [2.0]
    assert up_mean["error_x"]["array"] == pytest.approx([0.1299], abs=1e-4)
    assert same["x"] == [0.1, -0.1, 0, 0]
    assert same_mean["x"] == [0.0]
    front = figures["against-params"]["data"][0]
    assert (front["x"], front["y"]) == ([1e6, 1.25e6], [90.75, 92.75])
    mean = next(t for t in figures["curves-top1"]["data"] if t.get("name") == "up")
    assert (mean["x"], mean["y"]) == ([1, 2], [91.75, 92.75])


def test_table_of_the_learning_curves_tells_the_last_epoch(summary):
    curves = next(plot for plot in build_plots(summary) if plot.name == "curves-top1")
    assert curves.rows[1] == ("up", "2", "92.750", "92.000 to 93.900", "4")


def test_colours_of_the_plots_exist(page):
    defined = set(re.findall(r"(--[\w-]+):", page[: page.index("</style>")]))
    used = set(re.findall(r"var\((--[\w-]+)\)", json.dumps(figures_of(page))))
    assert used
    assert used <= defined


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize(("palette", "card"), [(LIGHT, "#ffffff"), (DARK, "#14181f")])
def test_contrast_of_the_palettes(page, palette, card):
    """WCAG asks for 3 : 1 for graphics."""
    assert f"--card: {card}" in page
    for colour in palette:
        light, dark = sorted((luminance(colour), luminance(card)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3


def test_every_plot_has_its_numbers_as_a_table(page, summary):
    text = text_of(page)
    for plot in build_plots(summary):
        for row in plot.rows:
            assert " ".join(row) in text


def test_names_are_text_everywhere():
    evil = "<img src=x onerror=alert(1)>"
    data = made_up(name=f"</script>{evil}", study_file=evil, folder=evil)
    data = replace(
        data,
        variants={evil: evil, "same": "a|b"},
        trials=tuple(replace(t, variant=t.variant.replace("up", evil)) for t in data.trials),
        curves=[(name.replace("up", evil), *rest) for name, *rest in data.curves],
    )
    data = changed(data, evil, 1, status="failed", value=None, error=f"ValueError: {evil}")
    page = render_html(summarise(data))
    assert "<img" not in page.replace(page[page.rindex("<footer>") :], "")
    assert "<img" not in page[page.rindex("<footer>") : page.rindex("</footer>")]
    assert page.count("</script>") == 7  # five figures, the library, the page's own
    hover = figures_of(page)["differences"]["data"][-1]["hovertemplate"]
    assert "&lt;img" in hover
    markdown = render_markdown(summarise(data))
    assert "<img" not in markdown[: markdown.index("## Repeat it")]


@pytest.mark.parametrize("count", [0, 1, 4, 11])
def test_page_of_a_running_study(count):
    summary = summarise(made_up(count))
    text = text_of(render_html(summary))
    assert f"{count} of 12 trials finished (1 running" in text
    assert "the numbers are preliminary." in text
    assert "NaN" not in text
    if count == 0:
        assert summary.headline == "No statement possible yet for up, same."
        assert build_plots(summary) == []


def test_missing_and_failed_trials_are_named():
    data = changed(
        made_up(), "up", 1, status="failed", value=None, error="Traceback\nValueError: 7"
    )
    data = changed(data, "same", 2, value=math.nan)
    summary = summarise(data)
    assert summary.rows[1].seconds == pytest.approx(61.67, abs=0.01)  # without the failed one's 61
    page = render_html(summary)
    assert [(t.variant, t.seed) for t in summary.troubles] == [("up", 1), ("same", 2)]
    assert "up 1 failed 2 ValueError: 7 Traceback ValueError: 7" in text_of(page)
    assert "same 2 finished 2 its top-1 is not a number" in text_of(page)
    assert summary.progress == "11 of 12 trials finished (1 failed)."
    assert "seed 1 missing from the pairs" in text_of(page)
    assert "| up | 1 | failed | ValueError: 7 |" in render_markdown(summary)


def test_unfair_study_is_told_first():
    summary = summarise(changed(made_up(), "up", 1, init_digest="x"))
    text = text_of(render_html(summary))
    assert text.index("do not trust the verdict") < text.index("How the verdict is reached")
    assert "do not trust the verdict" in render_markdown(summary)
    assert "Not fair, do not trust the verdict" in terminal_table(summary.data)


def test_loss_is_better_when_lower():
    data = made_up(metric="loss")
    data = replace(data, trials=tuple(replace(t, value=-(t.value or 0)) for t in data.trials))
    summary = summarise(data)
    assert summary.comparisons[0].verdict == "better"
    assert "Left of zero is better" in render_html(summary)
    assert "points" not in summary.headline


def test_many_variants_draw_the_best_curves():
    data = made_up()
    names = [f"v{i:02d}" for i in range(40)]
    trials = [t for t in data.trials if t.variant == "baseline"]
    curves = [c for c in data.curves if c[0] == "baseline"]
    for i, name in enumerate(names):
        trials += [Trial(name, s, "finished", 80 + i + s / 10, 1, params=5) for s in range(4)]
        curves += [(name, s, 1, {"top1": 80.0 + i}) for s in range(4)]
    summary = summarise(
        replace(data, variants=dict.fromkeys(names, ""), trials=trials, curves=curves)
    )
    figures = {plot.name: plot for plot in build_plots(summary)}
    drawn = [row[0] for row in figures["curves-top1"].rows]
    assert drawn[:3] == ["baseline", "v39", "v38"]
    assert len(drawn) == 24
    assert "17 more networks, with lower results, are not drawn" in figures["curves-top1"].caption
    visible = [
        t["visible"] for t in json.loads(figures["curves-top1"].figure)["data"] if "name" in t
    ]
    assert visible.count(True) == 8


def test_csv_can_be_read_back(summary):
    rows = list(csv.DictReader(io.StringIO(render_csv(summary))))
    assert [row["network"] for row in rows] == ["baseline", "up", "same"]
    up, comparison = rows[1], summary.comparisons[0]
    assert rows[0]["difference"] == ""
    assert float(up["difference_low"]) == comparison.low
    assert float(up["p_holm"]) == comparison.p_holm
    assert (up["verdict"], up["params"], up["seeds"]) == ("better", "1250000", "4")


def test_trials_csv_holds_every_trial():
    rows = list(csv.DictReader(io.StringIO(render_trials_csv(summarise(made_up(5))))))
    assert len(rows) == 12
    assert rows[4] | {"seconds": ""} == {
        "network": "up", "seed": "1", "status": "finished", "top1": "93.1", "epochs": "2",
        "seconds": "", "params": "1250000", "macs": "11000000",
        "init_digest": "weights-1", "order_digest": "order-1",
    }  # fmt: skip
    assert rows[6]["top1"] == ""


def test_terminal_table(summary):
    lines = terminal_table(summary.data).splitlines()
    assert re.split(r"  +", lines[0]) == [
        *("network", "top-1", "difference [95 %]", "p (Holm)", "verdict", "params", "MACs", "time")
    ]
    assert re.fullmatch(
        r"up +92\.75 +\+2\.00 \[\+1\.87, \+2\.13\] +< 0\.001 +▲ better +1\.25 M +11\.0 M +61\.5 s",
        lines[3],
    )
    assert lines[-2:] == ["All 12 trials finished.", summary.headline]
    assert max(map(len, lines[:5])) <= 110


def stored(folder):
    """A real store with one finished, one failed and two waiting trials."""
    study = load_study(
        {
            "name": "stored",
            "recipe": {"data": "fashion_mini", "model": "resnet10_small", "epochs": 1},
            "variants": {"gc": {"block": "global_context", "at": "block_end", "how": "after"}},
            "seeds": 2,
        }
    )
    store = Store.prepare(folder, study)
    store.settle("data", "fingerprint-of-the-data")
    done = claim_next(store)
    done.record_environment({"visgraft": "0.1.0", "torch": "2.15.0"})
    done.record_facts({"params": 10, "macs": 20, "init_digest": "i", "order_digest": "o"})
    done.finish({1: {"top1": 50.25, "train_loss": 1.0}})
    claim_next(store).fail("Traceback\nRuntimeError: broken")
    return store


def test_report_of_a_real_store(tmp_path):
    store = stored(tmp_path / "study")
    data = study_data(store.folder)
    assert data.values == {("baseline", 0): 50.25}
    assert data.variants == {"gc": "global_context after at block_end"}
    assert [t.status for t in data.trials] == ["finished", "failed", "waiting", "waiting"]
    assert (data.fingerprint, data.trials[0].params) == ("fingerprint-of-the-data", 10)
    assert load_study(json_of(data.study_file)) == store.study
    path = report(store.folder)
    assert path == store.folder / "report.html"
    text = text_of(path.read_text(encoding="utf-8"))
    assert "1 of 4 trials finished (1 failed, 2 waiting): the numbers are preliminary." in text
    assert "RuntimeError: broken" in text
    written = {p.name for p in store.folder.iterdir()}
    assert {"report.html", "report.md", "report.csv", "trials.csv"} <= written
    assert not [name for name in written if name.startswith(".")]


def json_of(text):
    import yaml

    return yaml.safe_load(text)


def test_report_without_a_study(tmp_path):
    with pytest.raises(StudyError, match=r"holds no study"):
        report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_report_that_cannot_be_written(tmp_path):
    store = stored(tmp_path / "study")
    (store.folder / "report.md").mkdir()
    with pytest.raises(StudyError, match=r"report: .*study cannot be written to: .*report\.md"):
        report(store.folder)
    assert not (store.folder / "report.html").exists()
