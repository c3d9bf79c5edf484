"""The report in a real browser: Chromium without a window, driven by selenium."""

import json
import shutil
import time

import pytest

from tests.study.made_up_page import full_summary
from visgraft.study.reports.page import render_html

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs Chromium and its chromedriver"),
]
PATIENCE = 120  # seconds, of which a quiet machine needs three


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    file = folder / "report.html"
    file.write_text(render_html(full_summary()), encoding="utf-8")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    arguments = ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage")
    for argument in (*arguments, f"user-data-dir={folder / 'profile'}"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        driver.set_page_load_timeout(PATIENCE)
        driver.set_script_timeout(PATIENCE)
        size(driver, 1200, 900)
        driver.get(file.as_uri())
        yield driver
    finally:
        driver.quit()


def size(driver, width, height):
    how = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", how)


def media(driver, kind="", scheme="light"):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": kind, "features": features})


def ask(driver, code, *arguments):
    return driver.execute_script(code, *arguments)


def wait_for(driver, code, *arguments):
    end = time.monotonic() + PATIENCE
    while not (found := ask(driver, code, *arguments)):
        assert time.monotonic() < end, f"never true: {code}"
        time.sleep(0.05)
    return found


def one(driver, selector, text=None):
    found = driver.find_elements("css selector", selector)
    return next(e for e in found if text is None or e.text.startswith(text))


def press(driver, *keys):
    webdriver.ActionChains(driver).send_keys(*keys).perform()


def order_of(driver):
    names = "return [...document.querySelectorAll('.verdicts tbody th')].map(x => x.dataset.key)"
    return ask(driver, names)


def test_page_loads_without_a_word(browser):
    assert browser.title == "A study – visgraft study"  # noqa: RUF001
    figures = ask(
        browser,
        "return [...document.querySelectorAll('.figure')].map("
        "f => [f.id, f.querySelectorAll('.main-svg').length > 0, f.getAttribute('aria-label')])",
    )
    assert [name for name, drawn, _ in figures if drawn] == [
        *("differences", "against-params", "against-macs", "against-latency", "against-memory"),
        *("curves-top1", "curves-train_loss"),
    ]
    assert figures[0][2] == "Paired differences to the baseline; the numbers follow as a table"
    assert ask(browser, "return performance.getEntriesByType('resource').length") == 0
    broken = "return [...document.images].filter(i => !i.complete || !i.naturalWidth).length"
    assert (ask(browser, "return document.images.length"), ask(browser, broken)) == (4, 0)
    assert browser.get_log("browser") == []


def test_table_sorts_by_click(browser):
    header = one(browser, ".verdicts thead th", "Difference")
    header.find_element("css selector", "button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    assert order_of(browser) == ["same", "wide", "up", "baseline"]
    header.find_element("css selector", "button").click()
    assert header.get_attribute("aria-sort") == "descending"
    assert order_of(browser) == ["up", "wide", "same", "baseline"]
    sorted_by = "return document.querySelectorAll('.verdicts th[aria-sort$=ending]').length"
    assert ask(browser, sorted_by) == 1


def test_table_sorts_by_keyboard(browser):
    button = one(browser, ".verdicts thead button", "Network")
    ask(browser, "arguments[0].focus()", button)
    press(browser, webdriver.Keys.ENTER)
    header = one(browser, ".verdicts thead th", "Network")
    assert header.get_attribute("aria-sort") == "ascending"
    assert order_of(browser) == ["baseline", "same", "up", "wide"]
    press(browser, webdriver.Keys.SPACE)
    assert header.get_attribute("aria-sort") == "descending"
    assert order_of(browser) == ["wide", "up", "same", "baseline"]
    assert ask(browser, "return document.activeElement === arguments[0]", button)


def test_tables_with_units_sort_by_size(browser):
    """12.0 ms is more than 3.00 ms, and what was not measured comes last both ways."""
    header = one(browser, ".verdicts thead th", "Latency, 1")
    button = header.find_element("css selector", "button")
    button.click()
    assert order_of(browser) == ["baseline", "same", "up", "wide"]
    button.click()
    assert order_of(browser) == ["up", "same", "baseline", "wide"]
    table = ask(
        browser,
        "const table = document.querySelector('.against-latency table');"
        "const button = [...table.querySelectorAll('button')]"
        ".find(b => b.textContent === 'Ms for one image'); button.click();"
        "return [...table.tBodies[0].rows].map(r => r.children[1].textContent)",
    )
    assert table == ["2.00 ms", "3.00 ms", "12.0 ms"]


def test_point_of_a_plot_tells_its_value(browser):
    point = "return [...document.querySelectorAll('#differences .point')].at(-1)"
    target = ask(browser, point)  # drawn last: the mean of the first variant
    ask(browser, "arguments[0].scrollIntoView({block: 'center'})", target)
    webdriver.ActionChains(browser).move_to_element(target).perform()
    text = "return document.querySelector('#differences .hoverlayer')?.textContent"
    assert wait_for(browser, text).startswith("up: +2.00 [+1.87, +2.13] points")


def test_tooltip_of_the_pointer_and_of_the_focus(browser):
    button = one(browser, ".verdicts thead button", "Effect")
    ask(browser, "scrollTo(0, 0)")
    webdriver.ActionChains(browser).move_to_element(button).perform()
    tip = "const t = document.getElementById('tip'); return t.hidden ? '' : t.textContent"
    assert wait_for(browser, tip).startswith("Standardised: mean difference")
    name = one(browser, ".verdicts tbody .tip", "up")
    ask(browser, "arguments[0].focus()", name)
    assert ask(browser, tip) == "up at block_end"
    assert name.get_attribute("aria-describedby") == "tip"
    press(browser, webdriver.Keys.ESCAPE)
    assert ask(browser, tip) == ""
    assert name.get_attribute("aria-describedby") is None
    digest = one(browser, ".left tbody .tip", "order-0")
    ask(browser, "arguments[0].focus()", digest)
    time.sleep(0.3)  # the page scrolls to it
    assert ask(browser, tip) == "order-0"
    assert ask(browser, "return scrollY") > 500
    inside = "const r = document.getElementById('tip').getBoundingClientRect();"
    assert ask(browser, f"{inside} return r.left >= 0 && r.right <= innerWidth && r.top >= 0")


def test_keyboard_finds_the_way(browser):
    """The first stop leads past the head, and every stop can be seen."""
    ask(browser, "document.activeElement.blur(); scrollTo(0, 0)")
    ask(browser, "document.body.tabIndex = -1; document.body.focus()")
    press(browser, webdriver.Keys.TAB)
    seen = (
        "const e = document.activeElement, s = getComputedStyle(e);"
        "return [e.textContent.trim(), s.outlineStyle, parseFloat(s.outlineWidth) >= 2,"
        " e.getBoundingClientRect().left >= 0]"
    )
    assert ask(browser, seen) == ["Skip to the results", "solid", True, True]
    press(browser, webdriver.Keys.ENTER)
    assert ask(browser, "return document.activeElement.id") == "main"
    stops = []
    for _ in range(4):
        press(browser, webdriver.Keys.TAB)
        stops.append(ask(browser, seen))
    assert all(stop[1:3] == ["solid", True] for stop in stops)
    assert stops[1][0] == "Network"


CONTRASTS = """
const parse = (text) => text.match(/[\\d.]+/g).map(Number);
const linear = (c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
const ground = (element) => {
  for (let e = element; e; e = e.parentElement) {
    const colour = parse(getComputedStyle(e).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
  }
  return [255, 255, 255];
};
document.querySelectorAll("details").forEach((d) => { d.open = true; });
const poor = [];
let count = 0;
for (const element of document.body.querySelectorAll("*:not(script):not(noscript)")) {
  const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  if (!own || element.closest("noscript") || !element.getClientRects().length) continue;
  const style = getComputedStyle(element);
  const ink = element.closest("svg") ? style.fill : style.color;
  const [a, b] = [light(parse(ink)), light(ground(element.closest("svg") ?? element))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  count += 1;
  if (ratio < 4.5) poor.push(`${ratio.toFixed(2)} ${element.tagName} ${element.textContent}`);
}
return [count, poor];
"""


@pytest.mark.parametrize(("scheme", "page"), [("light", "246, 247, 249"), ("dark", "13, 16, 21")])
def test_contrast_of_every_text(browser, scheme, page):
    media(browser, scheme=scheme)
    ground = "return getComputedStyle(document.body).backgroundColor"
    wait_for(browser, f"return (() => {{ {ground} }})() === 'rgb({page})'")
    ink = {"light": "27, 33, 41", "dark": "230, 233, 238"}[scheme]
    title = "return document.querySelector('#differences .xtitle').style.fill"
    wait_for(browser, f"return (() => {{ {title} }})() === 'rgb({ink})'")  # painted anew
    count, poor = ask(browser, CONTRASTS)
    assert count > 300
    assert poor == []


def test_narrow_page_does_not_scroll_sideways(browser):
    media(browser)
    size(browser, 400, 800)
    wait_for(browser, "return document.querySelector('#differences svg').clientWidth < 400")
    wait_for(browser, "return document.documentElement.scrollWidth <= 400")
    box = one(browser, ".scroll")
    assert ask(browser, "return arguments[0].scrollWidth > arguments[0].clientWidth", box)
    assert box.get_attribute("tabindex") == "0"
    ask(browser, "arguments[0].focus()", box)
    press(browser, webdriver.Keys.ARROW_RIGHT)
    wait_for(browser, "return arguments[0].scrollLeft > 0", box)
    first = "return document.querySelector('.verdicts tbody th').getBoundingClientRect().left >= 0"
    assert ask(browser, first)  # the names stay
    size(browser, 1200, 900)


def test_paper_is_white_and_wide_enough(browser):
    media(browser, "print", "dark")
    size(browser, 703, 1000)  # A4 with margins of 12 mm
    ask(browser, "dispatchEvent(new Event('beforeprint'))")
    assert ask(browser, "return getComputedStyle(document.body).backgroundColor") == (
        "rgb(255, 255, 255)"
    )
    title = ask(browser, "return document.querySelector('#differences .xtitle').style.fill")
    assert title == "rgb(27, 33, 41)"
    widths = "return [...document.querySelectorAll('.figure .main-svg')].map(x => x.clientWidth)"
    assert max(ask(browser, widths)) <= 703
    assert ask(browser, "return document.documentElement.scrollWidth") <= 703
    shown = "return getComputedStyle(document.querySelector(arguments[0])).display"
    assert ask(browser, shown, ".skip") == "none"
    ask(browser, "dispatchEvent(new Event('afterprint'))")
    media(browser)
    size(browser, 1200, 900)
    pages = browser.execute_cdp_cmd("Page.printToPDF", {"paperWidth": 8.27, "paperHeight": 11.69})
    assert len(json.dumps(pages)) > 50_000
    assert browser.get_log("browser") == []
