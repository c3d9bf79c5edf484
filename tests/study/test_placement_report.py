"""The report of a placement: every candidate is on the map with its number, and nothing is judged
that was only screened."""

import re
from dataclasses import replace
from html import unescape
from xml.etree import ElementTree

import pytest

from tests.study.made_up_placement import WORTH, made_up_plan, trained
from visgraft.study.placement import placing as placement
from visgraft.study.placement.map import Lane, draw_map
from visgraft.study.placement.network import NetworkBlock, NetworkMap
from visgraft.study.placement.placing import place
from visgraft.study.placement.report import place_rows, plan_table, render_page, result_table

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """stage4 is better, stage3 cannot be told apart; the others fell out, the stem does not fit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement, "run_study", trained(WORTH | {"stage3": 0.01}))
        plan = made_up_plan(screening_seeds=2)
        return place(plan, folder=tmp_path_factory.mktemp("done") / "place")


@pytest.fixture(scope="module")
def begun(done):
    return replace(done, rungs=done.rungs[:1], final=None)


def lanes_of(svg):
    root = ElementTree.fromstring(svg)
    return {g.get("data-candidate"): g for g in root.iter(f"{SVG}g") if g.get("data-candidate")}


def texts(element):
    return " ".join(text.strip() for text in element.itertext() if text.strip())


def marks(lane):
    """Horizontal places of the marks of a lane, in the order in which they are drawn."""
    return [float(re.match(r"M([\d.]+)", p.get("d"))[1]) for p in lane.iter(f"{SVG}path")
            if p.get("class") == "mark"]  # fmt: skip


def block_centres(svg):
    boxes = [r for r in ElementTree.fromstring(svg).iter(f"{SVG}rect") if r.get("class") == "block"]
    return [float(box.get("x")) + float(box.get("width")) / 2 for box in boxes]


def text_of(page):
    body = re.sub(r"<(style|script)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", body)))


def test_map_has_every_candidate_with_its_number(done):
    lanes = lanes_of((done.folder / "place.svg").read_text())
    assert list(lanes) == ["stem", *WORTH]
    final = {c.variant: c for c in done.final.comparisons}
    assert set(final) == {"stage4", "all"}
    for name, c in final.items():
        assert lanes[name].get("class") == "lane final better gain"
        assert f"+{c.mean:.2f} [+{c.low:.2f}, +{c.high:.2f}] points" in texts(lanes[name])
        assert "▲ better" in texts(lanes[name])
    first, second = (r.comparisons for r in done.rungs)
    assert lanes["stage2"].get("class") == "lane screening gain"
    assert f"△ +{second['stage2'].mean:.2f} (rung 2: 2 epochs, 2 seeds)" in texts(lanes["stage2"])
    assert lanes["stage1"].get("class") == "lane screening loss"
    assert f"▽ {first['stage1'].mean:.2f} (rung 1: 1 epoch, 2 seeds)" in texts(lanes["stage1"])
    assert "screening only" in texts(lanes["stage1"])
    assert lanes["stem"].get("class") == "lane excluded"
    assert "✕ not compared too <few> channels" in texts(lanes["stem"])


def test_marks_stand_below_their_blocks(done):
    svg = (done.folder / "place.svg").read_text()
    centres, lanes = block_centres(svg), lanes_of(svg)
    assert len(centres) == 5
    assert centres == sorted(centres)
    for n in range(1, 5):
        (x,) = marks(lanes[f"stage{n}"])
        assert abs(x - centres[n]) <= 7.5
    assert len(marks(lanes["all"])) == 4
    assert all(abs(x - c) <= 7.5 for x, c in zip(marks(lanes["all"]), centres[1:], strict=True))


def test_map_tells_stages_sizes_and_channels(done):
    root = ElementTree.fromstring((done.folder / "place.svg").read_text())
    words = texts(root)
    for part in ("stem", "stage 1", "stage 4", "16 ch", "128 ch", "28 x 28", "3 x 3"):
        assert part in words
    assert "layer2.0: 32 channels, 14 x 14" in words
    assert root.get("role") == "img"
    title, told = root[0], root[1]
    assert root.get("aria-labelledby") == f"{title.get('id')} {told.get('id')}"
    for name in ("stem", *WORTH):
        assert f"{name} (" in told.text
    assert "no verdict" in told.text
    heights = [float(r.get("height")) for r in root.iter(f"{SVG}rect") if r.get("class") == "block"]
    assert heights == sorted(heights, reverse=True)
    assert heights[0] > heights[-1]


def test_marks_tell_without_colour():
    network = NetworkMap((NetworkBlock("a", 1, 8, (4, 4)),), True)
    shapes = set()
    for styles in (
        ("final", "better", "gain"),
        ("final", "worse", "loss"),
        ("final", "unclear", "gain"),
        ("screening",),
        ("excluded",),
    ):
        svg = draw_map(network, [Lane("x", "v", "1", "told", (0,), styles)], title="t", alone=True)
        (mark,) = [p for p in lanes_of(svg)["x"].iter(f"{SVG}path") if p.get("class") == "mark"]
        shapes.add(re.sub(r"^M[\d.]+ [\d.]+", "", mark.get("d")))
    assert len(shapes) == 5


def test_long_networks_are_wider_than_the_screen_and_stay_readable():
    blocks = tuple(NetworkBlock(f"b{n}", 1 + n // 20, 8, (4, 4)) for n in range(60))
    svg = draw_map(NetworkMap(blocks, True), [], title="t", alone=True)
    boxes = [r for r in ElementTree.fromstring(svg).iter(f"{SVG}rect") if r.get("class") == "block"]
    assert len(boxes) == 60
    assert all(float(box.get("width")) >= 10 for box in boxes)


def test_page(done):
    page = (done.folder / "place.html").read_text(encoding="utf-8")
    text = text_of(page)
    assert done.headline in text
    for c in done.final.comparisons:
        assert c.statement in text
    for part in ("Not compared: too <few> channels.", "seeds 1000 to 1001", "seeds 0 to 3"):
        assert part in text
    assert "The validation images are the same in all of it" in text
    assert 'href="final/report.html"' in page
    assert (done.folder / "final" / "report.html").is_file()
    markup = re.sub(r"<script\b.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"src\s*=|url\(|@import|https?:", markup)
    drawn = page[page.index("<svg") : page.index("</svg>") + 6]
    assert list(lanes_of(drawn.replace("<svg", f'<svg xmlns="{SVG[1:-1]}"', 1))) == ["stem", *WORTH]
    rows = re.findall(r'<th scope="row" data-key="(\w+)">\w+</th>(.*?)</tr>', page, re.DOTALL)
    cells = {name: re.findall(r'<td data-key="([^"]*)"', row) for name, row in rows}
    first, second = (r.comparisons for r in done.rungs)
    assert cells["stage1"] == ["rung 1", str(first["stage1"].mean), "", "", "1010", "5000"]
    assert cells["stage2"][:3] == ["rung 2", str(first["stage2"].mean), str(second["stage2"].mean)]
    assert cells["all"][0] == "final"
    assert cells["stem"] == ["", "", "", "", "", ""]


def test_colours_of_the_map_exist(done):
    svg = (done.folder / "place.svg").read_text()
    page = (done.folder / "place.html").read_text(encoding="utf-8")
    used = set(re.findall(r"var\((--[\w-]+)\)", svg))
    assert used
    for text in (svg, page):
        assert used <= set(re.findall(r"(--[\w-]+):", text))


def test_nothing_is_said_before_the_final_study(begun):
    text = text_of(render_page(begun))
    assert "1 of 2 rungs of the screening done, 3 places left" in text
    assert "no statement yet" in text
    assert "Verdict on the survivors" not in text
    assert "better than" not in begun.headline
    assert not re.search(r"class=\"lane [^\"]*(better|worse|final)", render_page(begun))
    waiting = replace(begun, rungs=())
    lanes = [row.lane for row in place_rows(waiting)]
    assert {lane.verdict for lane in lanes[1:]} == {"… waiting"}


def test_terminal(done):
    lines = result_table(done).splitlines()
    assert re.split(r"  +", lines[0].strip()) == [
        *("place", "rung 1", "rung 2", "final [95 %]", "p (Holm)", "verdict", "params", "MACs")
    ]
    named = {line.split()[0]: line for line in lines[2:7]}
    assert list(named) == list(WORTH)
    assert "screening only" in named["stage1"]
    assert re.search(
        r"\+1\.\d\d \[\+1\.\d\d, \+1\.\d\d\] +(< 0\.001|0\.\d{3}) +▲ better", named["stage4"]
    )
    assert lines[-2:] == ["stem is not compared: too <few> channels.", done.headline]


def test_markdown_and_listing(done):
    text = (done.folder / "place.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 6
    assert {row.count("|") for row in rows} == {11}
    assert "▲ better" in next(row for row in rows if row.startswith("| stage4 "))
    assert "--recipe recipe.yaml" in text
    listing = plan_table(done.plan)
    assert "stem cannot be compared: too <few> channels." in listing
    assert "in all 76 epochs of training; all 5 places in the final study would take 96" in listing


def test_unfair_comparison_is_told(done):
    final = done.final
    unfair = replace(final.checks[0], passed=False, finding="It <is> rigged.")
    state = replace(done, final=replace(final, checks=(unfair, *final.checks[1:])))
    told = "Not fair, do not trust the final study: It <is> rigged."
    assert told in text_of(render_page(state))
    assert told in result_table(state)
