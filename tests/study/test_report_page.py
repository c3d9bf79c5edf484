"""What the page shows of digests, measured costs and pictures, and that all can read it."""

import csv
import io
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import pytest

from tests.study.made_up_page import full_data, full_summary
from tests.study.made_up_study import changed, made_up
from visgraft.study import statistics
from visgraft.study.reports import numbers
from visgraft.study.reports.data import StudyData, Trial, summarise
from visgraft.study.reports.files import render_csv, render_markdown
from visgraft.study.reports.page import render_html
from visgraft.study.reports.plots import build_plots
from visgraft.study.reports.seeds import LISTED, seed_rows
from visgraft.study.reports.style import DARK, LIGHT


@pytest.fixture(scope="module")
def page():
    return render_html(full_summary())


@pytest.fixture(scope="module")
def markup(page):
    return re.sub(r"<(style|script)\b.*?</\1>", " ", page, flags=re.DOTALL)


def words(markup):
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", markup)))


def section(markup, name):
    start = markup.index(f'<section aria-labelledby="{name}">')
    return markup[start : markup.index("</section>", start)]


def variables(page, mode):
    """The colours of a mode: the first rules are light, those of the media query dark."""
    css = page[page.index("<style>") : page.index("</style>")]
    dark = re.findall(r"@media screen and \(prefers-color-scheme: dark\) \{(.*?\})\s*\}", css, re.S)
    light = re.sub(r"@media[^{]*\{.*?\}\s*\}", "", css, flags=re.S)
    pattern = r"--([\w-]+): (#[0-9a-f]{6})"
    found = dict(re.findall(pattern, light))
    return found if mode == "light" else found | dict(re.findall(pattern, " ".join(dark)))


def contrast(one, other):
    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    light, dark = sorted(map(luminance, (one, other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_contrast_of_all_text(page, mode):
    """WCAG asks for 4.5 : 1."""
    colours = variables(page, mode)
    assert (colours["tone-0"], colours["ink"]) == (
        (LIGHT[0], "#1b2129") if mode == "light" else (DARK[0], "#e6e9ee")
    )
    pairs = [(ink, ground) for ink in ("ink", "muted", "accent") for ground in ("page", "card")]
    pairs += [(name, f"{name}-bg") for name in ("good", "bad", "quiet")]
    pairs += [("bad", "card")]
    poor = {pair for pair in pairs if contrast(*(colours[name] for name in pair)) < 4.5}
    assert poor == set()


class Outline(HTMLParser):
    def __init__(self):
        super().__init__()
        self.headings, self.landmarks, self.tables, self.stops = [], [], 0, []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag in ("header", "main", "footer"):
            self.landmarks.append(tag)
        self.tables += tag == "table"
        assert "title" not in attributes, f"{tag}: a title does not show to the keyboard"
        if attributes.get("data-tip"):
            self.stops.append(tag == "button" or attributes.get("tabindex") == "0")
        if tag == "img":
            assert attributes["alt"]
            assert attributes["src"].startswith("data:image/png;base64,")
        if attributes.get("role") in ("img", "group", "region"):
            assert attributes.get("aria-label") or attributes.get("aria-labelledby")


def test_page_can_be_walked_through(markup):
    outline = Outline()
    outline.feed(markup[markup.index("<body>") :])
    assert outline.landmarks == ["header", "main", "footer"]
    assert outline.headings[0] == 1
    assert outline.headings.count(1) == 1
    steps = [b - a for a, b in zip(outline.headings, outline.headings[1:], strict=False)]
    assert max(steps) == 1
    assert len(outline.stops) > 20
    assert all(outline.stops)
    assert '<a class="skip" href="#main">' in markup
    assert '<main id="main"' in markup


def test_every_plot_is_named_and_told(markup):
    summary = full_summary()
    for plot in build_plots(summary):
        part = markup[markup.index(f'id="{plot.name}"') :]
        figure = part[: part.index(">")]
        assert 'role="img"' in figure
        assert f'aria-label="{plot.title}; the numbers' in unescape(figure)
        assert f'aria-describedby="c-{plot.name}"' in figure
        table = part[part.index("<table") : part.index("</table>")]
        cells = [unescape(c) for c in re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", table)]
        assert cells == [cell for row in plot.rows for cell in row]


def test_costs_stand_in_the_verdict_table(markup):
    table = words(section(markup, "verdicts"))
    assert "Latency, 1 image" in table
    assert "Latency, 8 images" in table
    assert "12.0 ms p95 18.0 ms 48.0 ms p95 72.0 ms 3.00 MiB +0.0 %" in table
    assert "3.00 ms p95 4.50 ms 12.0 ms p95 18.0 ms 5.00 MiB +66.7 %" in table
    wide = table[table.index("wide resnet10_small widened") :]
    assert re.search(r"20 [-+.\d]+ % – – – 50\.0 s", wide)  # noqa: RUF001
    assert "A processor (cpu, 1 thread, float32): the whole network." in table


def test_costs_are_left_out_where_there_are_none():
    markup = render_html(summarise(made_up()))
    assert "Latency" not in words(section(markup, "verdicts"))
    assert "Latency" not in render_markdown(summarise(made_up()))
    assert "latency" not in render_csv(summarise(made_up()))


def test_costs_in_markdown_and_csv():
    summary = full_summary()
    text = render_markdown(summary)
    header, rule, _, up, *_ = text[text.index("| Network") :].splitlines()
    assert header.split(" | ")[8:11] == [
        *("Latency, 1 image (p95)", "Latency, 8 images (p95)", "Training memory")
    ]
    assert header.count("|") == rule.count("|") == up.count("|") == 13
    assert " | 12.0 ms (18.0 ms) | 48.0 ms (72.0 ms) | 3.00 MiB | 61.5 s |" in up
    rows = {row["network"]: row for row in csv.DictReader(io.StringIO(render_csv(summary)))}
    assert float(rows["up"]["latency_p95_batch8"]) == pytest.approx(0.072)
    assert float(rows["up"]["latency_p50_batch1"]) == pytest.approx(0.012)
    assert (rows["same"]["training_memory"], rows["same"]["measured_on"]) == ("5242880", "cpu")
    assert rows["wide"]["latency_p50_batch1"] == rows["wide"]["measured_on"] == ""


@pytest.mark.parametrize(
    ("write", "number", "text"),
    [
        (numbers.latency, 0.00123, "1.23 ms"),
        (numbers.latency, 0.000085, "85.0 µs"),
        (numbers.latency, 0.99996, "1.00 s"),
        (numbers.latency, 0.0009996, "1.00 ms"),
        (numbers.latency, None, "–"),  # noqa: RUF001
        (numbers.memory, 12.34 * 2**20, "12.3 MiB"),
        (numbers.memory, 1023.9 * 2**20, "1.00 GiB"),
        (numbers.memory, 2**10, "1.00 KiB"),
        (numbers.memory, 640, "640 B"),
        (numbers.memory, 0, "0 B"),
        (numbers.percent, 0.713, "71 %"),
        (numbers.percent, None, "–"),  # noqa: RUF001
    ],
)
def test_numbers(write, number, text):
    assert write(number) == text


def test_seeds_table_shows_what_each_seed_began_with(markup):
    text = words(markup[markup.index(">Seeds<") :])
    assert "0 weights-0 3 networks alike wide-0 wide order-0 4 networks alike" in text
    assert 'data-tip="weights-3"' in markup
    assert 'class="wrong"' not in markup
    rows = seed_rows(full_data())
    assert [row.seed for row in rows] == [0, 1, 2, 3]
    (start,), (own,), (order,) = rows[2].starts, rows[2].own, rows[2].orders
    assert (start.digest, start.networks) == ("weights-2", ("baseline", "up", "same"))
    assert (own.digest, own.networks) == ("wide-2", ("wide",))
    assert (order.digest, order.networks, order.others) == (
        *("order-2", ("baseline", "up", "same", "wide")),
        (),
    )


def test_seeds_table_shows_what_is_wrong():
    data = changed(full_data(), "up", 1, init_digest="other")
    data = changed(data, "up", 2, order_digest="order-1")
    rows = seed_rows(data)
    assert [d.networks for d in rows[1].starts] == [("baseline", "same"), ("up",)]
    assert [(d.digest, d.others) for d in rows[2].orders] == [("order-2", ()), ("order-1", (1,))]
    markup = render_html(summarise(data))
    assert "other only up" in words(markup)
    assert "only up; also seed 1" in words(markup)
    assert markup.count('class="wrong"') == 5  # two starts, two orders of 2, the order of 1


def test_waiting_trials_have_no_row():
    assert seed_rows(made_up(0)) == ()
    assert [row.seed for row in seed_rows(made_up(4))] == [0, 1]
    assert ">Seeds<" not in render_html(summarise(made_up(0)))
    troubles = words(render_html(summarise(made_up(4))))
    assert "same 1 waiting" not in troubles
    assert "up 1 running" in troubles


def test_pictures_are_shown_with_what_the_network_says(markup):
    text = words(section(markup, "pictures"))
    assert "Grad-CAM on the last feature map, 4 x 4 places) of 2 validation images" in text
    assert "baseline ✓ cat 71 % ✗ cat 50 %" in text
    assert "Without pictures: up (there is no trials/up-seed0/last.ckpt)." in text
    assert markup.count('src="data:image/png;base64,') == 4
    assert "What the networks look at" not in render_html(summarise(full_data(pictures=None)))


def big(variants, seeds):
    names = ["baseline", *(f"v{i:03d}" for i in range(variants))]
    trials = [
        Trial(name, s, "finished", 90 + i % 7 + (s * 37 % 11) / 10, 2, 1.0, 1000 + i, 2000 + i)
        for s in range(seeds)
        for i, name in enumerate(names)
    ]
    curves = [(t.variant, t.seed, e, {"top1": 80.0 + e}) for t in trials for e in (1, 2)]
    return StudyData(
        name="big", baseline="baseline", variants=dict.fromkeys(names[1:], "a block"),
        seeds=tuple(range(seeds)), trials=tuple(trials), curves=curves,
    )  # fmt: skip


def test_plots_of_a_big_study_stay_small_and_say_so(monkeypatch):
    monkeypatch.setattr(statistics, "_resampled_p", lambda *_: 0.5)  # takes a minute for so many
    summary = summarise(big(80, 40))
    plots = {plot.name: plot for plot in build_plots(summary)}
    differences = plots["differences"]
    assert "first 25 of 40 seeds are drawn" in differences.caption  # 1500 circles, 60 lines
    assert "20 more variants, with smaller differences, are in the table" in differences.caption
    assert len(differences.rows) == 80
    assert len(differences.header) == 2 + 30
    assert "first 18 of 40 seeds are drawn" in plots["against-params"].caption
    assert "Thin lines: the first 20 seeds" in plots["curves-top1"].caption
    assert sum(len(plot.figure) for plot in plots.values()) < 400_000  # bytes


def test_few_seeds_are_all_drawn():
    captions = [plot.caption for plot in build_plots(full_summary())]
    assert not [c for c in captions if "seeds are drawn" in c or "first" in c]


def test_long_lists_of_seeds_are_cut():
    data = big(1, LISTED + 3)
    trials = tuple(replace(t, init_digest=f"i{t.seed}", order_digest="o") for t in data.trials)
    text = words(render_html(summarise(replace(data, trials=trials))))
    assert "3 more seeds are in trials.csv" in text
    assert f"i{LISTED - 1} 2 networks alike" in text
    assert f"i{LISTED} 2 networks alike" not in text
