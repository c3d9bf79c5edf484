"""The embedded demo set."""

import hashlib
import json
from collections import Counter
from importlib.resources import files
from time import perf_counter
from typing import Any

import numpy as np
import pytest

from visgraft.data import DataError, ImageSplit, load_data


def pixels(split: ImageSplit) -> np.ndarray:
    return np.stack([np.asarray(image) for image, _ in split])


def test_sizes_balance_and_facts() -> None:
    data = load_data("fashion_mini")
    assert (len(data.train), len(data.val)) == (10_000, 2_000)
    assert Counter(data.train.labels) == dict.fromkeys(range(10), 1000)
    assert Counter(data.val.labels) == dict.fromkeys(range(10), 200)
    assert data.classes[0] == "T-shirt/top"
    assert data.classes[9] == "Ankle boot"
    assert (data.name, data.in_chans, data.image_size) == ("fashion_mini", 1, (28, 28))
    image, label = data.train[1000]
    assert (image.mode, image.size, label) == ("L", (28, 28), 1)
    assert len(set(data.train.names) | set(data.val.names)) == 12_000


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("train", "c0c6726b84344f71ed5f3f778113ef72d81c3e38038638a076d9f7b48ef3af3c"),
        ("val", "80f041a1db53aeefce90d32bb6094e616abf55eed82a9c247b6c2a44a773acf7"),
    ],
)
def test_pixels_are_those_of_the_originals(part: str, expected: str) -> None:
    content = pixels(getattr(load_data("fashion_mini"), part))
    assert hashlib.sha256(content.tobytes()).hexdigest() == expected
    facts = json.loads((files("visgraft.data") / "fashion_mini" / "facts.json").read_text())
    assert facts[part]["pixels_sha256"] == expected


def test_mean_and_std_are_those_of_the_training_part() -> None:
    data = load_data("fashion_mini")
    content = pixels(data.train) / 255
    assert data.mean == pytest.approx((content.mean(),), abs=1e-4)
    assert data.std == pytest.approx((content.std(),), abs=1e-4)


def test_a_label_belongs_to_its_picture() -> None:
    data = load_data("fashion_mini")
    content, labels = pixels(data.train) / 255, np.array(data.train.labels)
    means = np.stack([content[labels == label].mean(0) for label in range(10)])
    val = pixels(data.val) / 255
    nearest = ((val[:, None] - means) ** 2).sum((2, 3)).argmin(1)
    assert (nearest == np.array(data.val.labels)).mean() > 0.65


def test_loads_quickly_and_weighs_little() -> None:
    load_data("fashion_mini")
    start = perf_counter()
    load_data("fashion_mini")
    assert perf_counter() - start < 1.5  # 0.15 s on a free core
    folder = files("visgraft.data") / "fashion_mini"
    assert sum(len(item.read_bytes()) for item in folder.iterdir()) < 6e6
    assert "Zalando SE" in (folder / "LICENSE").read_text()


def test_limits_are_balanced_subsets_of_each_other() -> None:
    small = load_data("fashion_mini", train_limit=105, val_limit=20)
    large = load_data("fashion_mini", train_limit=1000)
    counts = Counter(small.train.labels)
    assert sum(counts.values()) == 105
    assert set(counts.values()) == {10, 11}
    assert Counter(small.val.labels) == dict.fromkeys(range(10), 2)
    assert set(small.train.names) < set(large.train.names)
    full = load_data("fashion_mini")
    place = full.train.names.index(small.train.names[50])
    assert np.array_equal(np.asarray(small.train[50][0]), np.asarray(full.train[place][0]))
    assert small.train.labels[50] == full.train.labels[place]


def test_limits_follow_the_seed_and_nothing_else() -> None:
    first, again = (load_data("fashion_mini", train_limit=50) for _ in range(2))
    other = load_data("fashion_mini", train_limit=50, split_seed=1)
    assert first.train.names == again.train.names
    assert first.fingerprint == again.fingerprint
    assert set(first.train.names) != set(other.train.names)
    assert first.fingerprint != other.fingerprint


def test_a_limit_beyond_the_data_takes_all() -> None:
    data = load_data("fashion_mini", train_limit=10**6, val_limit=2000)
    assert (len(data.train), len(data.val)) == (10_000, 2_000)
    assert data.fingerprint == load_data("fashion_mini").fingerprint


@pytest.mark.parametrize("name", ["train_limit", "val_limit"])
def test_a_limit_below_the_classes_is_refused(name: str) -> None:
    options: dict[str, Any] = {name: 9}
    with pytest.raises(
        DataError, match=rf"{name} must be at least the number of classes, 10, got 9"
    ):
        load_data("fashion_mini", **options)


def test_a_near_name_is_suggested() -> None:
    with pytest.raises(DataError, match=r"there is no folder .*; did you mean 'fashion_mini'\?"):
        load_data("fashon_mini")


def test_a_slice_is_a_split() -> None:
    part = load_data("fashion_mini").train[995:1005]
    assert isinstance(part, ImageSplit)
    assert part.labels == [0] * 5 + [1] * 5
    assert part.names[0] == "train/0/0995"
    assert part[-1][1] == 1
    with pytest.raises(IndexError):
        part[10]
