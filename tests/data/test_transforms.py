"""From images to tensors: which path, which values, which options."""

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from tests.data.conftest import noise
from visgraft.data import DataError, ImageData, build_transforms, load_data

GRAY = load_data("fashion_mini", train_limit=10, val_limit=10)


@pytest.fixture
def photos() -> ImageData:
    """Colour images of different sizes (only the facts are used)."""
    return replace(
        GRAY,
        name="photos",
        in_chans=3,
        image_size=None,
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.25, 0.3),
    )


def steps(transform: Any) -> str:
    return " ".join(type(step).__name__ for step in transform.transforms)


def photo(height: int = 90, width: int = 120) -> Image.Image:
    return Image.fromarray(noise(5, (height, width)))


@pytest.mark.parametrize("options", [{}, {"image_size": 28}, {"image_size": (28, 28)}])
def test_evaluation_of_small_images_only_normalises(options: dict[str, Any]) -> None:
    image = GRAY.val[3][0]
    result = build_transforms(GRAY, training=False, **options)(image)
    expected = (torch.tensor(np.asarray(image)) / 255 - GRAY.mean[0]) / GRAY.std[0]
    assert result.shape == (1, 28, 28)
    assert torch.allclose(result[0], expected, atol=1e-6)


def test_evaluation_of_photos_resizes_and_cuts_the_centre(photos: ImageData) -> None:
    image = photo()
    result = build_transforms(photos, 70, training=False)(image)
    reference = v2.Compose(
        [
            v2.Resize(80, v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(70),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(photos.mean), list(photos.std)),
        ]
    )
    assert torch.allclose(result, reference(image), atol=1e-6)


def test_crop_pct_interpolation_mean_and_std_have_an_effect(photos: ImageData) -> None:
    plain = build_transforms(photos, 70, training=False)(photo())
    whole = build_transforms(photos, 70, training=False, crop_pct=1.0)(photo())
    linear = build_transforms(photos, 70, training=False, interpolation="bilinear")(photo())
    assert not torch.allclose(plain, whole, atol=0.1)
    assert not torch.allclose(plain, linear, atol=0.1)
    other = build_transforms(photos, 70, training=False, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))(
        photo()
    )
    pixels = plain * torch.tensor(photos.std)[:, None, None]
    pixels += torch.tensor(photos.mean)[:, None, None]
    assert torch.allclose(other, (pixels - 0.5) / 0.5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_rectangular_outputs(photos: ImageData, training: bool) -> None:
    for size in ((48, 32), (160, 96)):
        for image in (photo(), photo(120, 90), photo(500, 11)):
            assert build_transforms(photos, size, training=training)(image).shape == (3, *size)


def test_which_path_training_takes(photos: ImageData) -> None:
    small = replace(photos, image_size=(32, 32))
    uniform = replace(photos, image_size=(500, 500))
    padded = "PadAndCrop RandomHorizontalFlip MaybePILToTensor _Normalize"
    resized = "RandomResizedCropAndInterpolation RandomHorizontalFlip MaybePILToTensor _Normalize"
    assert steps(build_transforms(small, 32, training=True)) == f"_{padded}"
    assert steps(build_transforms(photos, 64, training=True)) == f"ResizeKeepRatio _{padded}"
    assert steps(build_transforms(small, 128, training=True)) == f"ResizeKeepRatio _{padded}"
    assert steps(build_transforms(photos, 65, training=True)) == resized
    assert steps(build_transforms(uniform, 224, training=True)) == resized
    assert steps(build_transforms(small, 32, training=True, crop_scale=(0.5, 1.0))) == resized
    assert steps(build_transforms(photos, 224, training=True, crop_padding=8)) == (
        f"ResizeKeepRatio _{padded}"
    )


def test_pad_and_crop_reaches_each_offset_with_black_around() -> None:
    image = Image.new("L", (28, 28), 255)
    transform = build_transforms(GRAY, training=True, hflip=0.0, crop_padding=2)
    torch.manual_seed(0)
    corners = set()
    for _ in range(400):
        lit = transform(image)[0] > 0
        rows, columns = lit.any(1).nonzero()[:, 0], lit.any(0).nonzero()[:, 0]
        assert lit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        corners.add((int(rows[0]) or int(rows[-1]) - 27, int(columns[0]) or int(columns[-1]) - 27))
    assert corners == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}


def test_padding_is_an_eighth_by_default_and_may_be_none() -> None:
    assert "PadAndCrop(size=(28, 28), padding=4)" in str(build_transforms(GRAY, training=True))
    image = GRAY.train[0][0]
    plain = build_transforms(GRAY, training=True, crop_padding=0, hflip=0.0)(image)
    assert torch.equal(plain, build_transforms(GRAY, training=False)(image))


def test_pad_and_crop_of_larger_images_stays_inside_the_padding(photos: ImageData) -> None:
    transform = build_transforms(photos, 32, training=True, crop_padding=0, hflip=0.0)
    white = Image.new("RGB", (60, 40), "white")
    for _ in range(50):
        assert (transform(white) > 0).all()


def test_flip_is_certain_at_one() -> None:
    image = GRAY.train[0][0]
    flipped = build_transforms(GRAY, training=True, crop_padding=0, hflip=1.0)(image)
    assert torch.equal(flipped.flip(2), build_transforms(GRAY, training=False)(image))


def test_crop_scale_bounds_the_area(photos: ImageData) -> None:
    gradient = Image.fromarray(np.tile(np.linspace(0, 255, 256).astype(np.uint8), (256, 1)))
    gray = replace(photos, in_chans=1, mean=(0.0,), std=(1.0,))
    torch.manual_seed(0)
    for scale, low, high in (((0.9, 1.0), 0.8, 1.01), ((0.08, 0.1), 0.2, 0.4)):
        transform = build_transforms(gray, 96, training=True, crop_scale=scale)
        spans = [float(out.max() - out.min()) for out in (transform(gradient) for _ in range(20))]
        assert low < sum(spans) / 20 < high


def test_random_erase_color_jitter_and_auto_augment_have_an_effect(photos: ImageData) -> None:
    still: dict[str, Any] = {"training": True, "hflip": 0.0, "crop_padding": 0}
    image = photo(40, 40)
    plain = build_transforms(photos, 40, **still)(image)
    choices: list[dict[str, Any]] = [
        {"random_erase": 1.0},
        {"color_jitter": 0.4},
        {"auto_augment": "rand-m9-mstd0.5-inc1"},
        {"auto_augment": "augmix-m3-w3"},
    ]
    for option in choices:
        transform = build_transforms(photos, 40, **still, **option)
        results = [transform(image) for _ in range(10)]
        assert {result.shape for result in results} == {plain.shape}
        assert not all(torch.allclose(result, plain) for result in results), option
    both = build_transforms(photos, 40, **still, color_jitter=0.4, auto_augment="rand-m9")
    assert "ColorJitter" in steps(both)
    assert "RandAugment" in steps(both)


def test_erasing_and_jitter_of_grayscale() -> None:
    image = GRAY.train[0][0]
    transform = build_transforms(GRAY, training=True, random_erase=1.0, color_jitter=0.4)
    assert transform(image).shape == (1, 28, 28)


def test_transforms_can_be_pickled(photos: ImageData) -> None:
    for transform in (
        build_transforms(GRAY, training=True),
        build_transforms(photos, 96, training=True, auto_augment="rand-m9", random_erase=0.5),
    ):
        assert str(pickle.loads(pickle.dumps(transform))) == str(transform)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"image_size": None}, "the images of photos differ in size; choose an image_size"),
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
        ({"crop_padding": 4, "crop_scale": (0.5, 1.0)}, "two ways to cut; give one of them"),
        ({"crop_padding": -1}, "crop_padding must not be negative, got -1"),
        ({"crop_scale": (0.0, 1.0)}, r"0 < low <= high <= 1, got \(0.0, 1.0\)"),
        ({"crop_scale": (0.9, 0.5)}, r"0 < low <= high <= 1, got \(0.9, 0.5\)"),
        ({"hflip": 1.5}, r"hflip must be in \[0, 1\], got 1.5"),
        ({"random_erase": -0.1}, r"random_erase must be in \[0, 1\], got -0.1"),
        ({"color_jitter": -1.0}, "color_jitter must not be negative, got -1.0"),
        ({"mean": (0.5,)}, r"mean must have one value per channel, 3 for photos, got \(0.5,\)"),
        ({"std": (0.5, 0.0, 0.5)}, "std must be above 0"),
        ({"interpolation": "cubic"}, "must be one of bicubic, bilinear, nearest, got 'cubic'"),
        ({"auto_augment": "ramd-m9"}, "unknown auto_augment policy 'ramd'; did you mean 'rand'?"),
        ({"auto_augment": "rand-x9"}, "timm does not understand auto_augment='rand-x9'"),
        ({"training": False, "crop_pct": 1.5}, r"crop_pct must be in \(0, 1\], got 1.5"),
    ],
)
def test_illegal_options(photos: ImageData, options: dict[str, Any], text: str) -> None:
    with pytest.raises(DataError, match=text):
        build_transforms(photos, **{"image_size": 96, "training": True, **options})


def test_auto_augment_of_grayscale_is_refused() -> None:
    with pytest.raises(DataError, match="works on RGB images, and those of fashion_mini are gray"):
        build_transforms(GRAY, training=True, auto_augment="rand-m9")
