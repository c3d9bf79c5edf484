"""Masks, compared with pycocotools pixel by pixel."""

import numpy as np
import pytest
from pycocotools import mask as oracle

from visgraft.data.detection._segmentation import parse_segmentation
from visgraft.data.detection.masks import (
    Polygons,
    counts_from_text,
    counts_to_text,
    decode_mask,
    encode_bitmap,
)


def bitmap(seed: int, size: tuple[int, int], share: float) -> np.ndarray:
    return np.random.default_rng(seed).random(size) < share


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98, 1.0])
def test_run_lengths_are_those_of_pycocotools(seed: int, share: float) -> None:
    size = (1 + seed * 17, 1 + (11 - seed) * 23)
    pixels = bitmap(seed, size, share)
    runs = encode_bitmap(pixels)
    text = counts_to_text(runs.counts)
    expected = oracle.encode(np.asfortranarray(pixels.astype(np.uint8)))
    assert text == expected["counts"].decode()
    assert counts_from_text(text) == runs.counts.tolist()
    assert np.array_equal(decode_mask(runs, *size), pixels)


def test_the_runs_of_a_small_bitmap() -> None:
    pixels = np.array([[0, 1, 1], [0, 0, 1]], bool)
    assert encode_bitmap(pixels).counts.tolist() == [2, 1, 1, 2]
    assert encode_bitmap(~pixels).counts.tolist() == [0, 2, 1, 1, 2]


def test_long_runs_survive_the_text() -> None:
    counts = [0, 1, 10**9, 5, 3, 10**7, 0, 31, 32, 1]
    assert counts_from_text(counts_to_text(counts)) == counts


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't:DeprecationWarning")
@pytest.mark.parametrize("seed", range(10))
def test_polygons_are_filled_as_by_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(5, 90, 2))
    rings = [
        rng.uniform(-3, 1.05 * max(height, width), 2 * int(rng.integers(3, 9))) for _ in range(2)
    ]
    ours = decode_mask(Polygons(tuple(rings)), height, width)
    runs = oracle.frPyObjects([ring.tolist() for ring in rings], height, width)
    assert np.array_equal(ours, oracle.decode(oracle.merge(runs)).astype(bool))


def test_a_bitmap_is_its_own_mask() -> None:
    pixels = bitmap(0, (4, 5), 0.5)
    assert decode_mask(pixels, 4, 5) is pixels


def test_compressed_and_plain_counts_are_one_mask() -> None:
    counts = [7, 3, 10, 4, 6]
    plain = parse_segmentation({"size": [5, 6], "counts": counts}, 5, 6)
    text = parse_segmentation({"size": [5, 6], "counts": counts_to_text(counts)}, 5, 6)
    assert plain is not None
    assert text is not None
    assert np.array_equal(decode_mask(plain, 5, 6), decode_mask(text, 5, 6))
    assert decode_mask(plain, 5, 6).T.ravel().nonzero()[0].tolist() == [7, 8, 9, 20, 21, 22, 23]


@pytest.mark.parametrize("empty", [None, []])
def test_an_empty_segmentation_is_no_mask(empty: object) -> None:
    assert parse_segmentation(empty, 5, 6) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("abc", "must be a list of polygons or a dict"),
        (5, "must be a list of polygons or a dict"),
        ([1, 2, 3, 4, 5, 6], "each a list of finite numbers, got 1 as one"),
        ([[1, 2, "3", 4, 5, 6]], "each a list of finite numbers"),
        ([[1, 2, float("nan"), 4, 5, 6]], "each a list of finite numbers"),
        ([[1, 2, 10**400, 4, 5, 6]], "each a list of finite numbers"),
        ([[1, 2, 3, 4]], "at least three points of two numbers each, got 4 numbers"),
        ([[1, 2, 3, 4, 5, 6, 7]], "at least three points of two numbers each, got 7 numbers"),
        ([[1, 2, 3, 4, 1e9, 6]], "far outside of its image of 6 x 5 pixels"),
        ([[-7, 2, 3, 4, 5, 6]], "far outside"),
        ({"size": [6, 5], "counts": [30]}, r"size \[6, 5\] do not fit the image's \[5, 6\]"),
        ({"counts": [30]}, "size None do not fit"),
        ({"size": [5, 6], "counts": [29]}, "add up to 29 pixels, and the image has 30"),
        ({"size": [5, 6], "counts": [31, -1]}, "counts must be compressed text or a list"),
        ({"size": [5, 6], "counts": None}, "counts must be compressed text or a list"),
        ({"size": [5, 6], "counts": "\x7f"}, "no compressed run lengths"),
        ({"size": [5, 6], "counts": "o" * 50}, "no compressed run lengths"),
        ({"size": [5, 6], "counts": "o"}, "end in the middle of a number"),
    ],
)
def test_a_wrong_segmentation_is_told(value: object, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        parse_segmentation(value, 5, 6)
