"""The images and objects of a detection run, in an order that a resumed run repeats."""

from typing import Any

from pytorch_lightning import LightningDataModule
from torch import Generator
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from visgraft.data import EpochSampler
from visgraft.data.detection import (
    DetectionData,
    DetectionParts,
    SeededDetection,
    stack_samples,
    without_crowds,
)
from visgraft.tasks.detection.transforms import evaluation_transform, training_transform
from visgraft.tasks.recipe import Recipe

__all__ = ["DetectionLoaders", "measuring_loader"]


class DetectionLoaders(LightningDataModule):
    """Loaders of the training and the validation part.

    Crowds are not learned from; images without objects are. The last, incomplete batch of an epoch
    is left out of training; the order is random, so these are other images each time.

    Args:
        data: Images and objects.
        recipe: Says batch size, augmentation, workers and seed.
        first_epoch: Where a resumed run goes on, counted from 0.
    """

    def __init__(self, data: DetectionParts, recipe: Recipe, *, first_epoch: int = 0) -> None:
        super().__init__()
        transform = training_transform(
            min_size=recipe.min_size,
            max_size=recipe.max_size,
            hflip=recipe.hflip,
            scale_jitter=recipe.scale_jitter,
            color_jitter=recipe.color_jitter,
        )
        self.train = SeededDetection(
            without_crowds(data.train), transform, recipe.seed, masks=recipe.finds_masks
        )
        self.val = data.val
        self.recipe = recipe
        self._first_epoch = first_epoch

    def set_epoch(self, epoch: int) -> None:
        """Chooses the random changes of an epoch; the order is chosen by Lightning."""
        self.train.set_epoch(epoch)

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        """Returns the training loader.

        Lightning starts its workers before it sets the epoch of a resumed run; hence the epoch is
        set here already.
        """
        world, rank = 1, 0
        if self.trainer:
            world, rank = self.trainer.world_size, self.trainer.global_rank
        sampler = EpochSampler(len(self.train), self.recipe.seed, num_replicas=world, rank=rank)
        sampler.set_epoch(self._first_epoch)
        self.set_epoch(self._first_epoch)
        return _loader(
            self.train,
            min(self.recipe.batch_size, len(sampler)),
            self.recipe.workers,
            sampler=sampler,
            drop_last=True,
            persistent_workers=self.recipe.workers > 0,
        )

    @override
    def val_dataloader(self) -> DataLoader[Any]:
        """Returns the validation loader."""
        return measuring_loader(self.val, self.recipe.batch_size, self.recipe.workers)


def measuring_loader(data: DetectionData, batch_size: int, workers: int) -> DataLoader[Any]:
    """Returns a loader of images that are measured on, in their own sizes and order."""
    return _loader(SeededDetection(data, evaluation_transform()), batch_size, workers)


def _loader(
    samples: Dataset[Any], batch_size: int, workers: int, **options: Any
) -> DataLoader[Any]:
    return DataLoader(
        samples,
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=stack_samples,
        generator=Generator(),  # the loader's own draws leave the run's stream alone
        **options,
    )
