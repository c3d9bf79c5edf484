"""The VOC reader."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import noise
from visgraft.data import DataError
from visgraft.data.detection import check_detection, load_voc

Make = Callable[..., Path]

CAT = """<object><name>cat</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin>
<xmax>10</xmax><ymax>20</ymax></bndbox></object>"""
DOG = CAT.replace("cat", "dog").replace("<difficult>0", "<difficult>1")
SIZE = "<size><width>40</width><height>20</height><depth>3</depth></size>"


def xml(objects: str = CAT, size: str = SIZE, head: str = "", name: str = "a.jpg") -> str:
    return f"{head}<annotation><filename>{name}</filename>{size}{objects}</annotation>"


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def build(**files: str) -> Path:
        root = tmp_path / "VOC2007"
        for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (root / part).mkdir(parents=True, exist_ok=True)
        for stem, content in files.items():
            (root / "Annotations" / f"{stem}.xml").write_text(content)
            Image.fromarray(noise(1, (20, 40))).save(root / "JPEGImages" / f"{stem}.jpg")
        return root

    return build


def test_corners_count_from_one(make: Make) -> None:
    data = load_voc(make(a=xml(CAT + DOG), b=xml("", name="b.jpg")))
    first, second = data.images
    assert (first.name, first.height, first.width) == ("a.jpg", 20, 40)
    cat, dog = first.objects
    assert (cat.box, cat.label, cat.area, cat.is_crowd) == ((0, 1, 10, 20), 0, 190, False)
    assert (dog.label, dog.is_crowd) == (1, True)
    assert data.classes == ("cat", "dog")
    assert second.objects == ()
    assert data.notes == ("1 images have no objects (kept)",)
    assert data.read(first).size == (40, 20)


def test_parts_have_the_same_classes(make: Make) -> None:
    root = make(a=xml(CAT), b=xml(DOG, name="b.jpg"))
    (root / "ImageSets" / "Main" / "val.txt").write_text("b\n")
    data = load_voc(root, "val")
    assert [image.name for image in data.images] == ["b.jpg"]
    assert data.images[0].objects[0].label == 1
    with pytest.raises(DataError, match=r"there is no .*train\.txt; choose a part"):
        load_voc(root, "train")
    (root / "ImageSets" / "Main" / "val.txt").write_text("b\nc\n")
    with pytest.raises(DataError, match=r"val\.txt: there is no c\.xml"):
        load_voc(root, "val")


BOMB = "<!DOCTYPE a [<!ENTITY b 'bbbb'><!ENTITY c '&b;&b;'>]>"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (xml(head=BOMB), "has a DOCTYPE, which VOC files have not; remove it"),
        (xml(head="<!DOCTYPE a SYSTEM 'file:///etc/passwd'>"), "has a DOCTYPE"),
        ("<annotation>", "is not sound xml"),
        ("", "is not sound xml"),
        (xml(CAT.replace("<xmin>1", "<xmin>x")), r"object 1: bndbox must have xmin.*got \['x'"),
        (xml(CAT.replace("bndbox", "box")), "object 1: bndbox must have"),
        (xml(CAT.replace("cat", "")), "object 1: has no name"),
        (xml(CAT.replace("<xmax>10", "<xmax>0")), "has no area"),
        (xml(CAT.replace("<xmax>10", "<xmax>60")), "sticks out .* by 20"),
        (xml(size=SIZE.replace("40", "41")), r"says 41 x 20 pixels, and .*a\.jpg has 40 x 20"),
    ],
)
def test_a_bad_file_is_named(make: Make, content: str, text: str) -> None:
    root = make(a=content, b=xml(DOG, name="b.jpg"))
    with pytest.raises(DataError, match=text) as caught:
        load_voc(root)
    assert "1 problems" in str(caught.value)
    assert str(root / "Annotations" / "a.xml") in str(caught.value)


def test_a_doctype_in_another_encoding_is_refused(make: Make) -> None:
    root = make(a=xml())
    (root / "Annotations" / "a.xml").write_bytes(xml(head=BOMB).encode("utf-16"))
    with pytest.raises(DataError, match="has a DOCTYPE"):
        load_voc(root)


@pytest.mark.parametrize("size", ["", SIZE.replace("40", "0")])
def test_a_size_that_the_file_does_not_know_is_the_pictures(make: Make, size: str) -> None:
    image = load_voc(make(a=xml(size=size))).images[0]
    assert (image.height, image.width) == (20, 40)


def test_a_missing_picture_is_named_and_a_lone_one_counted(make: Make) -> None:
    root = make(a=xml(), b=xml(name="b.jpg"))
    (root / "Annotations" / "b.xml").unlink()
    assert "1 pictures have no xml file (left out)" in load_voc(root).notes
    (root / "JPEGImages" / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"a\.jpg: the file, or what it links to, does not exist"):
        load_voc(root)


def test_a_file_name_cannot_leave_the_folder(make: Make) -> None:
    root = make(a=xml(name="../secret.jpg"))
    Image.new("RGB", (40, 20)).save(root / "secret.jpg")
    data = load_voc(root)
    assert data.images[0].name == "a.jpg"
    assert np.asarray(data.read(data.images[0])).any()


def test_xml_beside_pictures(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "p.xml").write_text(xml(name="gone.jpg"))
    Image.fromarray(noise(1, (20, 40))).save(tmp_path / "x" / "p.png")
    (part,) = check_detection(tmp_path / "x")
    assert (part.format, part.problems) == ("VOC", ())
    assert part.data is not None
    assert part.data.images[0].name == "p.png"


def test_a_folder_without_xml_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no xml files"):
        load_voc(tmp_path)
