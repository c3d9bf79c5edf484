"""Samples: tensors of the right kind, which move with the image."""

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

from tests.data.detection.conftest import Coco, annotation
from visgraft.data import DataError
from visgraft.data.detection import DetectionDataset, fashion_scenes, per_object, stack_samples
from visgraft.data.detection.masks import decode_mask


def test_values_of_a_target(coco: Coco) -> None:
    data = coco.load()
    image, target = DetectionDataset(data)[0]
    assert isinstance(image, tv_tensors.Image)
    assert (image.dtype, image.shape) == (torch.uint8, (3, 20, 30))
    boxes = target["boxes"]
    assert isinstance(boxes, tv_tensors.BoundingBoxes)
    assert (boxes.canvas_size, boxes.format) == ((20, 30), tv_tensors.BoundingBoxFormat.XYXY)
    assert boxes.tolist() == [[2, 3, 12, 11]] * 2
    assert target["labels"].tolist() == [1, 0]
    assert target["area"].tolist() == [41.5] * 2
    assert target["iscrowd"].tolist() == [0, 0]
    assert (target["object_ids"].tolist(), target["image_id"]) == ([1, 2], 10)
    mask = data.images[0].objects[0].mask
    assert mask is not None
    expected = torch.from_numpy(decode_mask(mask, 20, 30).astype("uint8"))
    assert torch.equal(target["masks"][0].as_subclass(torch.Tensor), expected)


def test_an_image_without_objects_has_empty_tensors(coco: Coco) -> None:
    _, target = DetectionDataset(coco.load())[1]
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, 20, 30)
    assert (target["labels"].dtype, len(target["labels"])) == (torch.int64, 0)


def test_boxes_and_masks_move_with_the_image() -> None:
    train, _ = fashion_scenes(train_images=3, val_images=1)
    steps = v2.Compose([v2.RandomHorizontalFlip(p=1.0), v2.RandomCrop(100), _Sanitize()])
    plain, moved = DetectionDataset(train), DetectionDataset(train, transform=steps)
    torch.manual_seed(0)
    for index in range(3):
        image, target = moved[index]
        assert image.shape == (3, 100, 100)
        lengths = {len(target[name]) for name in ("boxes", "masks", "labels", "area", "iscrowd")}
        assert lengths == {len(target["object_ids"])}
        before = plain[index][1]
        for key, label in zip(target["object_ids"], target["labels"], strict=True):
            place = before["object_ids"].tolist().index(key)
            assert before["labels"][place] == label
        for box, mask in zip(target["boxes"], target["masks"], strict=True):
            rows, columns = mask.as_subclass(torch.Tensor).nonzero(as_tuple=True)
            if len(rows):  # a box that a crop has cut may be wider than what is left of its object
                x1, y1, x2, y2 = box.tolist()
                assert x1 <= columns.min() <= columns.max() < x2
                assert y1 <= rows.min() <= rows.max() < y2


class _Sanitize(v2.SanitizeBoundingBoxes):
    def __init__(self) -> None:
        super().__init__(labels_getter=per_object)


def test_a_flip_mirrors_the_box(coco: Coco) -> None:
    dataset = DetectionDataset(coco.load(), transform=v2.RandomHorizontalFlip(p=1.0))
    assert dataset[0][1]["boxes"][0].tolist() == [18, 3, 28, 11]


def test_masks_can_be_left_out_and_must_be_there_to_be_asked_for(coco: Coco) -> None:
    assert "masks" not in DetectionDataset(coco.load(), masks=False)[0][1]
    coco.annotations.append(annotation(8, 20, segmentation=[]))
    data = coco.load()
    assert "masks" not in DetectionDataset(data)[0][1]
    with pytest.raises(DataError, match=r"object 8 of 20\.png has none; use masks=False"):
        DetectionDataset(data, masks=True)


def test_a_loader_takes_images_of_many_sizes() -> None:
    train, _ = fashion_scenes(train_images=4, val_images=1)
    loader = DataLoader(DetectionDataset(train), batch_size=4, collate_fn=stack_samples)
    images, targets = next(iter(loader))
    assert [image.shape[1:] for image in images] == [(i.height, i.width) for i in train.images]
    assert [target["image_id"] for target in targets] == [1, 2, 3, 4]


def test_it_can_be_sent_to_workers(coco: Coco) -> None:
    dataset = pickle.loads(pickle.dumps(DetectionDataset(coco.load())))
    assert dataset[0][1]["boxes"].tolist() == [[2, 3, 12, 11]] * 2


def test_a_subset_keeps_its_images_in_order() -> None:
    train, _ = fashion_scenes(train_images=4, val_images=1)
    few = train.subset([3, 1])
    assert [target["image_id"] for _, target in (DetectionDataset(few)[i] for i in range(2))] == [
        4,
        2,
    ]


def test_the_example_of_the_page_runs() -> None:
    page = Path(__file__).parents[3] / "docs" / "detection_data.md"
    (code,) = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["image"].shape == (3, 112, 112)
    assert len(names["target"]["boxes"]) == len(names["target"]["masks"])
