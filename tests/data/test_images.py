"""Modes, depths, transparency and orientation of single files."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.data.conftest import noise
from visgraft.data import DataError
from visgraft.data.images import probe_image, read_image


def read(image: Image.Image, path: Path, **options: Any) -> np.ndarray:
    image.save(path, **options)
    result = read_image(path)
    assert result.mode == "RGB"
    assert probe_image(path) == (result.height, result.width)
    return np.asarray(result)


def test_rgb_is_kept(tmp_path: Path) -> None:
    assert np.array_equal(read(Image.fromarray(noise(1)), tmp_path / "x.png"), noise(1))


def test_the_result_outlives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(noise(1)).save(path)
    image = read_image(path)
    path.unlink()
    assert np.array_equal(np.asarray(image), noise(1))


def test_gray_fills_three_channels(tmp_path: Path) -> None:
    gray = noise(1, channels=1)
    assert np.array_equal(
        read(Image.fromarray(gray), tmp_path / "x.png"), np.repeat(gray[..., None], 3, 2)
    )


def test_one_bit(tmp_path: Path) -> None:
    result = read(Image.fromarray(noise(1, channels=1) > 127), tmp_path / "x.png")
    assert np.array_equal(result[..., 0], (noise(1, channels=1) > 127) * 255)


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_sixteen_bits_are_cut_to_eight(tmp_path: Path, ending: str) -> None:
    wide = np.array([[0, 255, 256], [32768, 65280, 65535]], np.uint16)
    result = read(Image.fromarray(wide), tmp_path / f"x.{ending}")
    assert result[..., 0].tolist() == [[0, 0, 1], [128, 255, 255]]
    assert np.array_equal(result[..., 0], result[..., 2])


def test_palette(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert read(image, tmp_path / "x.gif").tolist() == [[[10, 20, 30], [200, 100, 50]]]


def test_palette_with_transparency_lies_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    result = read(image, tmp_path / "x.png", transparency=0)
    assert result.tolist() == [[[255, 255, 255], [200, 100, 50]]]


def test_palette_with_degrees_of_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    result = read(image, tmp_path / "x.png", transparency=b"\x00\x80")
    assert result.tolist()[0][0] == [255, 255, 255]
    assert np.allclose(result[0, 1], [227, 177, 152], atol=1)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_lies_on_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (3, 1), (100, 100, 100, 255))
    image.putpixel((1, 0), (100, 100, 100, 0))
    image.putpixel((2, 0), (100, 100, 100, 51))
    result = read(image.convert(mode), tmp_path / "x.png")
    assert np.allclose(result[0, :, 0], [100, 255, 224], atol=1)


def test_cmyk_jpeg(tmp_path: Path) -> None:
    flat = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    result = read(flat, tmp_path / "x.jpg", quality=100)
    assert np.allclose(result, [255, 0, 0], atol=4)


def test_the_first_frame_of_several(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    result = read(frames[0], tmp_path / "x.webp", save_all=True, append_images=frames[1:])
    assert np.allclose(result, [255, 0, 0], atol=4)


@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "x.png"
    result = read(Image.fromarray(noise(1)), path, exif=exif)
    assert np.array_equal(result, np.asarray(ImageOps.exif_transpose(Image.open(path))))
    assert (result.shape == (10, 12, 3)) == (orientation in (5, 6, 7, 8))


def test_transparency_survives_turning(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    result = read(image, tmp_path / "x.png", transparency=0, exif=exif)
    assert result.tolist() == [[[255, 255, 255]], [[200, 100, 50]]]


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
@pytest.mark.parametrize("exif", [b"neither II nor MM", b"MM\x00*\x00\x00\x00"])
def test_broken_exif_data_do_not_spoil_an_image(tmp_path: Path, ending: str, exif: bytes) -> None:
    path = tmp_path / f"x.{ending}"
    result = read(Image.new("RGB", (16, 8), "red"), path, exif=b"Exif\x00\x00" + exif)
    assert result.shape == (8, 16, 3)


@pytest.mark.parametrize("format_name", ["JPEG", "WEBP", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("size", [(1, 1), (7, 3), (65, 130)])
def test_probing_gives_the_size_of_each_format(
    tmp_path: Path, format_name: str, size: tuple[int, int]
) -> None:
    path = tmp_path / "x"
    Image.fromarray(noise(1, size)).save(path, format_name)
    assert probe_image(path) == size
    assert read_image(path).size == size[::-1]


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM"])
@pytest.mark.parametrize("damage", ["cut", "zeros", "noise"])
def test_probing_notices_what_reading_notices(
    tmp_path: Path, format_name: str, damage: str
) -> None:
    buffer = BytesIO()
    Image.fromarray(noise(1, (40, 40))).save(buffer, format_name)
    random, path = np.random.default_rng(0), tmp_path / "x"
    refused = 0
    for _ in range(15):
        content = bytearray(buffer.getvalue())
        start = int(random.integers(1, len(content)))
        if damage == "cut":
            del content[start:]
        else:
            count = min(200, len(content) - start)
            content[start : start + count] = (
                random.bytes(count) if damage == "noise" else bytes(count)
            )
        path.write_bytes(content)
        outcomes = {readable(probe_image, path), readable(read_image, path)}
        assert len(outcomes) == 1
        refused += False in outcomes
    assert refused == 15 or damage != "cut"


def readable(function: Callable[[Path], object], path: Path) -> bool:
    try:
        function(path)
    except (DataError, Image.DecompressionBombError, OSError, SyntaxError, ValueError):
        return False
    return True
