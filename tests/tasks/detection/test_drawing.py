import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from tests.tasks.detection.random_cases import random_data, random_predictions
from visgraft.data import DataError
from visgraft.data.detection import DetectionDataset, fashion_scenes
from visgraft.tasks.detection.drawing import _best_place, draw_beside, draw_detections
from visgraft.tasks.detection.palette import class_color, ink_on
from visgraft.tasks.detection.predictions import check_prediction

GRAY = (128, 128, 128)
CLASSES = ("cat", "dog", "owl")

# Linear RGB of what eyes without one kind of cone see: Machado et al. 2009, table 1, severity 1.
EYES = [
    np.eye(3),
    np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
]


def blank(width=600, height=500, color=GRAY):
    return Image.new("RGB", (width, height), color)


def one(box, label=0, score=None, mask=None):
    found = {"boxes": [box], "labels": [label]}
    if score is not None:
        found["scores"] = [score]
    if mask is not None:
        found["masks"] = mask[None]
    return found


def changed(picture, color=GRAY):
    """Returns x1, y1, x2, y2 around what differs from the blank picture, None if nothing does."""
    differs = (np.asarray(picture) != color).any(-1)
    if not differs.any():
        return None
    rows, columns = np.flatnonzero(differs.any(1)), np.flatnonzero(differs.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def texts(monkeypatch):
    """Records what is written, and at which size."""
    written = []
    original = ImageDraw.ImageDraw.text

    def text(self, xy, text, fill=None, font=None, *args, **options):
        written.append((text, font.size))
        return original(self, xy, text, fill, font, *args, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return written


def test_a_box_has_the_colour_of_its_class_and_ends_where_it_should():
    picture = blank()
    drawn = draw_detections(picture, one((100, 200, 300, 400), label=1), CLASSES)
    assert changed(picture) is None
    assert drawn.size == picture.size
    pixels = np.asarray(drawn)
    for x, y in ((102, 300), (297, 300), (200, 202), (200, 397)):
        assert tuple(pixels[y, x]) == class_color(1)
    x1, y1, x2, y2 = changed(drawn)
    assert (x1, x2, y2) == (100, 300, 400)
    assert 170 < y1 < 200  # the name stands above
    assert tuple(pixels[300, 200]) == GRAY
    name = pixels[y1 : y1 + 10, 100:110].reshape(-1, 3)
    assert (name == class_color(1)).all(1).any()


def test_a_mask_is_half_transparent_with_an_opaque_edge():
    mask = np.zeros((500, 600), bool)
    mask[250:350, 150:250] = True
    drawn = np.asarray(draw_detections(blank(), one((100, 200, 300, 400), 2, 1.0, mask), CLASSES))
    color = np.array(class_color(2))
    middle = drawn[300, 200].astype(int)
    assert np.abs(middle - (0.6 * np.array(GRAY) + 0.4 * color)).max() <= 1
    assert tuple(drawn[250, 200]) == class_color(2)
    assert tuple(drawn[300, 249]) == class_color(2)
    assert tuple(drawn[249, 200]) == GRAY
    assert tuple(drawn[300, 250]) == GRAY
    bare = draw_detections(blank(), one((100, 200, 300, 400), 2, 1.0, mask), CLASSES, masks=False)
    assert tuple(np.asarray(bare)[300, 200]) == GRAY


def test_names_scores_and_crowds_are_written(monkeypatch):
    written = texts(monkeypatch)
    boxes = [(10, 50, 100, 90), (200, 200, 300, 300), (350, 100, 400, 200)]
    found = {"boxes": boxes, "labels": [0, 2, 1], "scores": [0.3, 0.925, 0.5]}
    draw_detections(blank(), found, CLASSES, score=0.5)
    assert [text for text, _ in written] == ["owl 0.93", "dog 0.50"]
    written.clear()
    data = random_data(1, crowds=1.0)
    image = next(image for image in data.images if image.objects)
    draw_detections(blank(image.width, image.height), image, data.classes)
    names = [f"{data.classes[item.label]} (crowd)" for item in image.objects]
    assert [text for text, _ in written] == names


@pytest.mark.parametrize(
    ("size", "drawn_size"),
    [((128, 160), (512, 640)), ((640, 427), (640, 427)), ((2000, 1500), (2000, 1500))],
)
def test_letters_can_be_read_in_small_and_large_pictures(monkeypatch, size, drawn_size):
    written = texts(monkeypatch)
    box = (size[0] // 8, size[1] // 2, size[0] // 2, size[1] // 4 * 3)
    drawn = draw_detections(blank(*size), one(box), CLASSES)
    assert drawn.size == drawn_size
    ((_, letters),) = written
    assert letters >= 11
    assert letters * 80 > sum(drawn_size) / 2  # where the picture is shown 1000 pixels wide
    factor = drawn_size[0] // size[0]
    x1, _, x2, y2 = changed(drawn)
    assert (x1, x2, y2) == (box[0] * factor, box[2] * factor, box[3] * factor)
    same = draw_detections(blank(*size), one(box), CLASSES, min_side=0)
    assert same.size == size


def test_an_enlarged_mask_stays_with_its_pixels():
    mask = np.zeros((120, 120), bool)
    mask[30:60, 70:90] = True
    found = one((65, 25, 95, 65), 0, None, mask)
    drawn = np.asarray(draw_detections(blank(120, 120), found, CLASSES))
    assert drawn.shape == (480, 480, 3)
    inside = (drawn[:, :, 0] != 128)[115:245, 285:365]
    inside &= (drawn[115:245, 285:365] != 0).any(-1)
    rows, columns = np.flatnonzero(inside.any(1)) + 115, np.flatnonzero(inside.any(0)) + 285
    assert (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1) == (120, 240, 280 + 5, 360)


def test_names_keep_off_each_other_and_off_small_boxes():
    boxes = [(300.0, 200.0, 320.0, 220.0), (325.0, 200.0, 345.0, 220.0), (290.0, 196.0, 310.0, 215)]
    names = []
    for box in boxes:
        names.append(_best_place(box, (60, 16), (600, 500), boxes, names))
    for i, (x1, y1, x2, y2) in enumerate(names):
        for other in names[:i] + boxes:
            apart = x2 <= other[0] or other[2] <= x1 or y2 <= other[1] or other[3] <= y1
            assert apart, (names[i], other)


@pytest.mark.parametrize("box", [(0, 0, 40, 30), (570, 0, 600, 40), (560, 480, 600, 500)])
def test_names_stay_in_the_picture(box):
    x1, y1, x2, y2 = _best_place(box, (90, 20), (600, 500), [], [])
    assert (x1, y1) >= (0, 0)
    assert x2 <= 600
    assert y2 <= 500
    assert (x2 - x1, y2 - y1) == (90, 20)


def test_all_forms_of_an_object_give_the_same_picture():
    data = fashion_scenes(train_images=1, val_images=1)[0]
    image, (pixels, target) = data.images[0], DetectionDataset(data)[0]
    want = np.asarray(draw_detections(data.read(image), image, data.classes))
    assert np.array_equal(want, draw_detections(pixels, target, data.classes))
    plain = {name: target[name].numpy() for name in ("labels", "masks")}
    plain["boxes"] = np.array(target["boxes"].tolist())
    assert np.array_equal(want, draw_detections(pixels, plain, data.classes))
    kept = check_prediction(
        plain | {"scores": np.ones(len(plain["labels"]))},
        "test",
        num_classes=10,
        size=(image.height, image.width),
        masks=True,
    )
    kept_drawn = draw_detections(pixels, kept, data.classes)
    scored = plain | {"scores": torch.ones(len(plain["labels"]))}
    assert np.array_equal(kept_drawn, draw_detections(pixels, scored, data.classes))


def test_nothing_found_is_the_picture_itself():
    nothing = {"boxes": np.zeros((0, 4)), "labels": [], "scores": [], "masks": np.zeros((0, 9, 9))}
    assert changed(draw_detections(blank(), nothing, CLASSES)) is None
    empty = dataclasses.replace(random_data(1).images[0], objects=())
    assert changed(draw_detections(blank(), empty, CLASSES)) is None


def test_boxes_of_no_width_and_outside_are_drawn_at_the_border():
    found = {"boxes": [(50, 50, 50, 50), (-20, -30, 700, 900)], "labels": [0, 1]}
    assert changed(draw_detections(blank(), found, CLASSES)) == (0, 0, 600, 500)


def test_annotated_and_found_beside_each_other(monkeypatch):
    written = texts(monkeypatch)
    truth, found = one((100, 200, 300, 400)), one((150, 200, 350, 400), 1, 0.8)
    both = draw_beside(blank(), truth, found, CLASSES)
    assert [text for text, _ in written] == ["cat", "dog 0.80", "annotated", "found"]
    gap = both.width - 1200
    strip = both.height - 500
    left = both.crop((0, strip, 600, both.height))
    right = both.crop((600 + gap, strip, both.width, both.height))
    assert np.array_equal(left, draw_detections(blank(), truth, CLASSES))
    assert np.array_equal(right, draw_detections(blank(), found, CLASSES))
    hidden = draw_beside(blank(), truth, found, CLASSES, score=0.9)
    assert changed(hidden.crop((600 + gap, strip, both.width, both.height))) is None


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (one((0, 0, 5, 5), 3), "labels must be 0 to 2, got 3"),
        (
            {"boxes": [[0, 0, 5, 5]], "labels": [0, 1]},
            r"1 boxes need as many labels, .* \(2, 1, 1\)",
        ),
        (one((0, 0, 5, 5), 0, 0.5, np.ones((7, 9), bool)), r"size \(500, 600\) .* got \(7, 9\)"),
    ],
)
def test_what_does_not_fit_is_refused(found, text):
    with pytest.raises(DataError, match=f"draw_detections: .*{text}"):
        draw_detections(blank(), found, CLASSES)


def test_a_tensor_must_be_a_picture():
    with pytest.raises(DataError, match=r"\(3, H, W\) of uint8, got \(3, 9, 9\) of torch.float32"):
        draw_detections(torch.zeros(3, 9, 9), one((0, 0, 5, 5)), CLASSES)


def test_random_predictions_are_drawn():
    data = random_data(2)
    for image in data.images:
        found = random_predictions(data, 3)[image.id]
        drawn = draw_detections(blank(image.width, image.height), found, data.classes)
        assert (changed(drawn) is None) == (len(found["boxes"]) == 0)


def lab(colors):
    shares = np.asarray(colors) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    xyz = np.array(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    for eye in EYES:
        light = np.clip(linear @ eye.T, 0, 1) @ xyz.T / xyz.sum(1)
        f = np.where(light > 216 / 24389, np.cbrt(light), (24389 / 27 * light + 16) / 116)
        yield np.stack(
            [116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], -1
        )


@pytest.mark.parametrize(("count", "least"), [(7, 16), (20, 13.5), (80, 6)])
def test_colours_of_classes_stay_apart_for_all_eyes(count, least):
    for seen in lab([class_color(label) for label in range(count)]):
        distances = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
        assert distances[~np.eye(count, dtype=bool)].min() > least


def test_names_are_black_or_white_whichever_is_read_better():
    assert ink_on((255, 255, 0)) == (0, 0, 0)
    assert ink_on((0, 0, 160)) == (255, 255, 255)
    for label in range(80):
        color = class_color(label)
        lightness = [next(iter(lab([c])))[0, 0] for c in (ink_on(color), color)]
        assert abs(lightness[0] - lightness[1]) > 45
