"""Random choices that depend on (seed, epoch, index) alone."""

import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from visgraft.data import AugmentedSplit, EpochSampler, build_transforms, load_data

DATA = load_data("fashion_mini", train_limit=30, val_limit=10)
TRANSFORM = build_transforms(DATA, training=True, random_erase=0.5, color_jitter=0.4)


def draws(_: Image.Image) -> Tensor:
    """A number of each of the three generators."""
    return torch.tensor([random.random(), np.random.rand(), float(torch.rand(()))])


def make(seed: int = 1, transform: Callable[[Image.Image], Tensor] = TRANSFORM) -> AugmentedSplit:
    return AugmentedSplit(DATA.train, transform, seed)


def test_each_seed_epoch_and_index_has_its_own_numbers() -> None:
    split = make(transform=draws)
    seen = [split[index][0] for index in range(30)]
    split.set_epoch(1)
    seen += [split[index][0] for index in range(30)]
    seen += [make(2, draws)[index][0] for index in range(30)]
    for column in torch.stack(seen).T:
        assert len(set(column.tolist())) == 90
    assert (torch.stack(seen).double().mean(0) - 0.5).abs().max() < 0.12


def test_order_and_repetition_do_not_matter() -> None:
    split, other = make(), make()
    forward = [split[index][0] for index in range(30)]
    random.seed(0)
    torch.manual_seed(0)
    backward = [other[index][0] for index in reversed(range(30))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forward, backward, strict=True))
    assert torch.equal(split[7][0], forward[7])
    other.set_epoch(1)
    assert not torch.equal(other[7][0], forward[7])
    other.set_epoch(0)
    assert torch.equal(other[7][0], forward[7])


def test_labels_and_images_belong_together() -> None:
    split = AugmentedSplit(DATA.val, build_transforms(DATA, training=False))
    assert len(split) == 10
    tensor, label = split[4]
    assert label == DATA.val.labels[4]
    expected = (np.asarray(DATA.val[4][0]) / 255 - DATA.mean[0]) / DATA.std[0]
    assert np.allclose(tensor[0], expected, atol=1e-6)


def test_the_global_generators_are_left_alone() -> None:
    def states() -> tuple[object, ...]:
        numpy_state = np.random.get_state(legacy=True)
        return (
            random.getstate(),
            [np.asarray(part).tolist() for part in numpy_state],
            torch.get_rng_state().tolist(),
        )

    def greedy(_: Image.Image) -> Tensor:
        random.gauss(0, 1)
        np.random.randn()
        return torch.randn(3)

    def failing(_: Image.Image) -> Tensor:
        greedy(_)
        raise RuntimeError("no")

    before = states()
    _ = make()[3], make(transform=greedy)[3]
    with pytest.raises(RuntimeError, match="no"):
        make(transform=failing)[3]
    assert states() == before


def test_the_spare_gaussian_of_numpy_does_not_leak_from_one_image_to_the_next() -> None:
    def gaussian(_: Image.Image) -> Tensor:
        return torch.tensor(np.random.randn())

    split = make(transform=gaussian)
    _ = split[0]
    second = split[1][0]
    assert torch.equal(make(transform=gaussian)[1][0], second)


def run(split: AugmentedSplit, epochs: list[int], **options: Any) -> list[Tensor]:
    sampler = EpochSampler(len(split), seed=5)
    loader = DataLoader(split, batch_size=7, sampler=sampler, **options)
    batches = []
    for epoch in epochs:
        sampler.set_epoch(epoch)
        split.set_epoch(epoch)
        batches += [images.clone() for images, _ in loader]
    return batches


def test_a_resumed_run_goes_on_as_the_whole_one() -> None:
    whole, resumed = run(make(), [0, 1, 2]), run(make(), [2])
    assert all(torch.equal(a, b) for a, b in zip(whole[-5:], resumed, strict=True))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_do_not_matter(persistent: bool) -> None:
    alone = run(make(), [0, 1])
    shared = run(make(), [0, 1], num_workers=2, persistent_workers=persistent)
    assert len(alone) == len(shared) == 10
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))
    assert not torch.equal(alone[0], alone[5])


@pytest.mark.slow
def test_spawned_workers_do_not_matter() -> None:
    alone = run(make(), [0, 1])
    shared = run(
        make(), [0, 1], num_workers=1, persistent_workers=True, multiprocessing_context="spawn"
    )
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))


def test_pickling_keeps_seed_and_epoch() -> None:
    split = make()
    split.set_epoch(4)
    copy = pickle.loads(pickle.dumps(split))
    assert copy.epoch == 4
    assert torch.equal(copy[2][0], split[2][0])
