"""Pictures of a user as the input of a classifier, and where pictures made of them go."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from torch import Tensor
from torch.utils.data import Dataset

from visgraft.data import DataError, ImageData, ImageSplit
from visgraft.data.images import ImageFiles
from visgraft.data.pictures import PictureFile
from visgraft.data.transforms import SMALL_IMAGE
from visgraft.tasks.checkpoint import RunRecord
from visgraft.tasks.images import evaluation_transform

__all__ = ["PictureInputs", "plan_pictures"]


def plan_pictures(
    folder: str | Path | None, files: Sequence[PictureFile], *, owner: str
) -> dict[int, Path]:
    """Returns where the picture that is drawn of each file goes: none without a folder.

    Args:
        folder: For the pictures.
        files: That are read.
        owner: Who complains.

    Raises:
        DataError: The folder is a file, or a picture would be written over one that is read.
    """
    if folder is None:
        return {}
    if Path(folder).exists() and not Path(folder).is_dir():
        raise DataError(f"{owner}: {folder} is a file; pictures go into a folder, choose another")
    sources = {file.path.resolve() for file in files}
    planned: dict[int, Path] = {}
    taken: set[Path] = set()
    for place, file in enumerate(files):
        below = PurePosixPath(file.name)
        target, count = Path(folder) / below.with_suffix(".jpg"), 1
        while target in taken:
            count += 1
            target = Path(folder) / below.with_name(f"{below.stem}_{count}.jpg")
        if target.resolve() in sources:
            raise DataError(
                f"{owner}: {target} is one of the pictures to read and would be written over; "
                "choose another folder for pictures"
            )
        taken.add(target)
        planned[place] = target
    return planned


class PictureInputs(Dataset[Tensor]):
    """Pictures as the input of a classifier.

    Where the checkpoint leaves open how much of a picture's middle is seen, the picture's size
    decides, as in `visgraft.data.build_transforms`.

    Args:
        record: What the checkpoint says.
        files: The pictures.
    """

    def __init__(self, record: RunRecord, files: Sequence[PictureFile]) -> None:
        self.files = files
        self.mode = "L" if record.in_chans == 1 else "RGB"
        self.transforms = [
            evaluation_transform(_describe(record, size), record.input)
            for size in (None, (SMALL_IMAGE, SMALL_IMAGE))
        ]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        picture = self.files[index].read().convert(self.mode)
        return self.transforms[max(picture.size) <= SMALL_IMAGE](picture)


def _describe(record: RunRecord, size: tuple[int, int] | None) -> ImageData:
    """Returns what a transform must know of pictures of a size."""
    nothing = ImageSplit(ImageFiles("", []), [])
    return ImageData(
        name="the pictures",
        classes=record.classes,
        train=nothing,
        val=nothing,
        in_chans=record.in_chans,
        image_size=size,
        mean=record.input.mean,
        std=record.input.std,
        fingerprint="",
    )
