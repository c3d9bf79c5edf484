"""The page on timm's architectures says what is so, and says it of all of them."""

import re

import pytest

from tests.surgery import coverage

SAMPLE = [  # cheap ones, each of another kind
    "mobilenetv3_small_050",  # squeeze and excitation, depthwise convolutions
    "inception_next_atto",  # depthwise convolutions on parts of the channels
    "lcnetv2_small",  # parallel convolutions that are merged for inference
    "legacy_seresnet18",
    "hgnetv2_b0",  # concatenation instead of addition
    "iformer_t",  # convolutions and attention
    "cait_xxs24_224",  # no 3 x 3 convolution, a class token
    "vit_tiny_patch16_224",
]


def test_every_class_of_the_installed_timm_has_a_row():
    rows = {(row.module, row.cls) for row in coverage.read()}
    assert sorted(coverage.architectures().keys() - rows) == []


def test_nothing_failed_and_every_refusal_has_a_sentence():
    for row in coverage.read():
        for cell, reason in zip(row.cells, row.reasons, strict=True):
            assert coverage.state(cell) != "failed", row
            assert (cell == "refused") <= (len(reason) > 20), row


def test_identity_starts_are_exact():
    for row in coverage.read():
        for order, cell in zip(coverage.ORDERS.values(), row.cells, strict=True):
            if cell == "refused":
                continue
            done, of, difference = re.match(r"(\d+) of (\d+), ([^,]+)", cell).groups()
            assert 0 < int(done) <= int(of)
            limit = coverage.TOLERANCE if order[0] in coverage.TRANSPLANTED else 0.0
            precise = re.search(r", (\S+) in float64", cell)
            if precise:
                difference, limit = precise[1], limit**2
            assert float(difference) <= limit, row


def test_the_page_is_what_its_rows_give(tmp_path, monkeypatch):
    rows, text = coverage.read(), coverage.PAGE.read_text()
    assert len(rows) > 100
    monkeypatch.setattr(coverage, "PAGE", tmp_path / "page.md")
    coverage.write(rows)
    without_versions = r"of timm \S+ with torch \S+:"
    again = coverage.PAGE.read_text()
    assert re.sub(without_versions, "", again) == re.sub(without_versions, "", text)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLE)
def test_the_page_says_what_happens(name):
    """Differences of transplants are rounding errors, which differ between machines."""
    (row,) = (row for row in coverage.read() if row.name == name)
    now = coverage.examine(name)
    assert now.reasons == row.reasons
    assert [without_rounding(cell) for cell in now.cells] == [
        without_rounding(cell) for cell in row.cells
    ]


def without_rounding(cell):
    return re.sub(r"\d+e-\d+", "rounding", cell)
