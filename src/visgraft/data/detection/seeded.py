"""Detection samples whose random changes depend on (seed, epoch, index) alone."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch.utils.data import Dataset

from visgraft.data._generators import seeded_generators
from visgraft.data._seeds import mix_seed
from visgraft.data.detection.annotations import DetectionData
from visgraft.data.detection.dataset import DetectionDataset, Sample

__all__ = ["SeededDetection", "without_crowds"]


class SeededDetection(Dataset[Sample]):
    """Applies ``transform`` to the samples of a `DetectionDataset`, reproducibly.

    What the transform draws from ``random``, NumPy and torch (CPU) follows from
    ``(seed, epoch, index)``: the same with any number of loader workers, before and after a resume,
    and for every network that is trained with one seed. The random numbers of the caller are not
    touched. The epoch lies in shared memory, so `set_epoch` reaches persistent workers, too.

    Args:
        data: Images and objects.
        transform: From image and target to image and target.
        seed: Seed of all random choices.
        masks: Whether targets have masks.

    Raises:
        DataError: Masks are asked for and an object has none.
    """

    def __init__(
        self,
        data: DetectionData,
        transform: Callable[..., Sample],
        seed: int = 0,
        *,
        masks: bool = False,
    ) -> None:
        self.samples = DetectionDataset(data, masks=masks)
        self.transform = transform
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch whose random choices are made now."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch; call it before the loader starts one."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        image, target = self.samples[index]
        with seeded_generators(mix_seed(self.seed, self.epoch, index)):
            return self.transform(image, target)


def without_crowds(data: DetectionData) -> DetectionData:
    """Returns the data without objects that stand for several; their images stay."""
    images = tuple(
        replace(image, objects=tuple(item for item in image.objects if not item.is_crowd))
        for image in data.images
    )
    return replace(data, images=images)
