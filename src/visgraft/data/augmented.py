"""A split with a transform whose random choices depend on (seed, epoch, index) alone."""

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from visgraft.data._generators import seeded_generators
from visgraft.data._seeds import mix_seed
from visgraft.data.splits import ImageSplit

__all__ = ["AugmentedSplit"]


class AugmentedSplit(Dataset[tuple[Tensor, int]]):
    """Applies ``transform`` to the images of a split, reproducibly.

    Before each image the generators of ``random``, NumPy and torch (CPU) are seeded from
    ``(seed, epoch, index)``, and put back afterwards. What the transform draws is therefore the
    same with any number of loader workers, in any order of indices, before and after a resume, and
    the random numbers of the caller are not touched (but for the spare number NumPy keeps after an
    odd count of ``np.random.randn``, which is dropped).

    The epoch lies in shared memory, so `set_epoch` reaches persistent workers, too.

    Args:
        split: Images and labels.
        transform: From the image to a tensor, see `build_transforms`.
        seed: Seed of all random choices.
    """

    def __init__(
        self, split: ImageSplit, transform: Callable[[Image.Image], Tensor], seed: int = 0
    ) -> None:
        self.split = split
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
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.split[index]
        with seeded_generators(mix_seed(self.seed, self.epoch, index)):
            return self.transform(image), label
