"""Sizes and pixels that a detector sees, and objects that move with their image."""

import pytest
import torch
from torchvision import tv_tensors
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from visgraft.data.detection import SeededDetection, fashion_scenes
from visgraft.tasks.detection.transforms import FitSize, evaluation_transform, training_transform

TRAIN = fashion_scenes(train_images=6, val_images=1)[0]


def samples(epoch=0, **options):
    transform = training_transform(**{"min_size": [96], "max_size": 160, "hflip": 0.0} | options)
    seen = SeededDetection(TRAIN, transform, seed=3, masks=True)
    seen.set_epoch(epoch)
    return [seen[index] for index in range(len(seen))]


@pytest.mark.parametrize("size", [(96, 160), (64, 1000), (200, 210)])
def test_without_randomness_it_is_what_the_detector_does_in_evaluation(size):
    detector = GeneralizedRCNNTransform(*size, [0.0] * 3, [1.0] * 3, size_divisible=1).eval()
    plain = SeededDetection(TRAIN, evaluation_transform(), masks=True)
    for index, (image, target) in enumerate(samples(min_size=[size[0]], max_size=size[1])):
        original, objects = plain[index]
        theirs, moved = detector([original], [objects])
        assert theirs.image_sizes == [tuple(image.shape[1:])]
        torch.testing.assert_close(image, theirs.tensors[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(target["boxes"], moved[0]["boxes"], atol=1e-3, rtol=0)
        assert torch.equal(target["masks"], moved[0]["masks"])


def test_pixels_are_fractions_and_types_are_plain():
    image, target = samples()[0]
    assert 0 <= image.min() < image.max() <= 1
    assert type(image) is type(target["boxes"]) is type(target["masks"]) is torch.Tensor


def test_each_image_draws_its_own_size_anew_in_each_epoch():
    sizes = [
        [min(image.shape[1:]) for image, _ in samples(epoch, min_size=[32, 48, 64], max_size=999)]
        for epoch in range(4)
    ]
    assert {side for row in sizes for side in row} == {32, 48, 64}
    assert len({tuple(row) for row in sizes}) > 1
    assert sizes[0] == [
        min(image.shape[1:]) for image, _ in samples(min_size=[32, 48, 64], max_size=999)
    ]


@pytest.mark.parametrize("hflip", [0.0, 1.0])
@pytest.mark.parametrize("jitter", [None, (0.5, 0.9), (1.2, 2.0)])
def test_boxes_stay_around_their_masks(hflip, jitter):
    cut = 0
    for (image, target), source in zip(
        samples(hflip=hflip, scale_jitter=jitter), TRAIN.images, strict=True
    ):
        assert target["masks"].shape[1:] == image.shape[1:]
        cut += len(source.objects) - len(target["boxes"])
        assert len(target["labels"]) == len(target["boxes"]) == len(target["masks"])
        for box, mask in zip(target["boxes"], target["masks"], strict=True):
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            if not len(rows):
                continue  # the cut left the corner of a box that shows nothing of the object
            around = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            assert all(a >= b - 1 for a, b in zip(around[:2], box[:2], strict=True))
            assert all(a <= b + 1 for a, b in zip(around[2:], box[2:], strict=True))
    assert (cut > 0) == (jitter == (1.2, 2.0))


def test_mirroring_moves_boxes_to_the_other_side():
    for (plain, before), (mirrored, after) in zip(samples(), samples(hflip=1.0), strict=True):
        width = plain.shape[2]
        torch.testing.assert_close(plain.flip(2), mirrored, atol=0.02, rtol=0)
        expected = before["boxes"][:, [2, 1, 0, 3]]
        expected[:, [0, 2]] = width - expected[:, [0, 2]]
        torch.testing.assert_close(after["boxes"], expected, atol=1e-3, rtol=0)


def test_jitter_never_makes_an_image_larger_than_the_size_before():
    base = [image.shape for image, _ in samples()]
    shrunk = [image.shape for image, _ in samples(scale_jitter=(0.5, 0.5))]
    grown = [image.shape for image, _ in samples(scale_jitter=(1.5, 2.0))]
    assert grown == base
    assert all(abs(s[1] - b[1] / 2) < 1 for s, b in zip(shrunk, base, strict=True))


def test_colours_change_and_nothing_else():
    for (plain, before), (coloured, after) in zip(
        samples(), samples(color_jitter=0.5), strict=True
    ):
        assert not torch.equal(plain, coloured)
        assert torch.equal(before["boxes"], after["boxes"])


def test_a_box_that_is_cut_away_goes_with_all_that_belongs_to_it():
    image = tv_tensors.Image(torch.zeros(3, 40, 40))
    target = {
        "boxes": tv_tensors.BoundingBoxes(
            [[0.0, 0, 2, 2], [1, 1, 39, 39]], format="XYXY", canvas_size=(40, 40)
        ),
        "labels": torch.tensor([4, 5]),
        "area": torch.tensor([4.0, 1444]),
        "iscrowd": torch.tensor([0, 0]),
        "object_ids": torch.tensor([11, 12]),
    }
    fit = FitSize([40], 40, (4.0, 4.0))
    torch.manual_seed(0)
    cut, moved = fit(image, target)
    assert cut.shape == (3, 40, 40)
    kept = training_transform(min_size=[40], max_size=40, hflip=0, scale_jitter=(4.0, 4.0))
    torch.manual_seed(0)
    _, left = kept(tv_tensors.Image(torch.zeros(3, 40, 40, dtype=torch.uint8)), target)
    sizes = moved["boxes"][:, 2:] - moved["boxes"][:, :2]
    stay = (sizes >= 1).all(1)
    assert stay.tolist() == [False, True]
    assert left["labels"].tolist() == [5]
    assert left["object_ids"].tolist() == [12]
