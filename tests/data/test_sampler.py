"""The order of the images."""

import random
from typing import Any

import numpy as np
import pytest
import torch

from visgraft.data import EpochSampler


def order(sampler: EpochSampler, epoch: int) -> list[int]:
    sampler.set_epoch(epoch)
    return list(sampler)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    sampler = EpochSampler(100, seed=3)
    first = [order(sampler, epoch) for epoch in range(3)]
    torch.manual_seed(9)
    random.seed(9)
    np.random.seed(9)
    resumed = EpochSampler(100, seed=3)
    assert order(resumed, 2) == first[2]
    assert order(resumed, 0) == first[0]
    assert len({tuple(one) for one in first} | {tuple(order(EpochSampler(100, seed=4), 0))}) == 4
    assert all(sorted(one) == list(range(100)) for one in first)


def test_the_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    EpochSampler(100, seed=3).digest(2)
    list(EpochSampler(100, seed=3))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_order_is_kept_from_version_to_version() -> None:
    assert order(EpochSampler(10, seed=0), 0) == [0, 7, 2, 6, 3, 1, 5, 4, 8, 9]


def test_without_shuffling() -> None:
    assert order(EpochSampler(5, shuffle=False), 7) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("size", [10, 11, 12])
def test_ranks_share_an_epoch(size: int, drop_last: bool) -> None:
    ranks = [
        EpochSampler(size, seed=1, num_replicas=4, rank=rank, drop_last=drop_last)
        for rank in range(4)
    ]
    shares = [order(sampler, 2) for sampler in ranks]
    expected = size // 4 if drop_last else -(-size // 4)
    assert [len(share) for share in shares] == [len(sampler) for sampler in ranks] == [expected] * 4
    together = [index for turn in zip(*shares, strict=True) for index in turn]
    alone = order(EpochSampler(size, seed=1), 2)
    assert together == (alone + alone[:3])[: expected * 4]


def test_more_ranks_than_images() -> None:
    shares = [list(EpochSampler(2, num_replicas=5, rank=rank)) for rank in range(5)]
    assert [len(share) for share in shares] == [1] * 5
    assert {index for share in shares for index in share} == {0, 1}


def test_the_digest_tells_orders_apart() -> None:
    digest = EpochSampler(50, seed=1).digest(2)
    sampler = EpochSampler(50, seed=1)
    sampler.set_epoch(9)
    assert sampler.digest(2) == digest
    assert sampler.epoch == 9
    others = [
        EpochSampler(50, seed=2).digest(2),
        EpochSampler(50, seed=1).digest(3),
        EpochSampler(51, seed=1).digest(2),
    ]
    assert len({digest, *others}) == 4
    assert EpochSampler(50, seed=1, num_replicas=2, rank=1).digest(2) == digest


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"size": 0}, "size and num_replicas must be at least 1, got 0 and 1"),
        ({"size": 5, "num_replicas": 0}, "must be at least 1, got 5 and 0"),
        ({"size": 5, "num_replicas": 2, "rank": 2}, r"rank must be in 0 \.\. 1, got 2"),
        ({"size": 1, "num_replicas": 2, "drop_last": True}, "drop_last leaves nothing of 1 images"),
    ],
)
def test_illegal_numbers(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        EpochSampler(**options)
