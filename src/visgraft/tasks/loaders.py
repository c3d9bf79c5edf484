"""The images of a run, in an order and with random changes that a resumed run repeats."""

from pytorch_lightning import LightningDataModule
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from typing_extensions import override

from visgraft.data import AugmentedSplit, EpochSampler, ImageData
from visgraft.tasks.checkpoint import InputSpec
from visgraft.tasks.devices import share_of_batch
from visgraft.tasks.images import evaluation_transform, training_transform
from visgraft.tasks.recipe import Recipe

__all__ = ["ImageLoaders"]

Loader = DataLoader[tuple[Tensor, int]]


class ImageLoaders(LightningDataModule):
    """Loaders of the training and the validation part.

    The last, incomplete batch of an epoch is left out of training; the order is random, so these
    are other images each time.

    Several devices share each batch: together they see in every update what one device would see.
    In validation each image is seen by one of them.

    Args:
        data: Images and labels.
        recipe: Says batch size, augmentation, workers and seed.
        spec: What the network takes.
        first_epoch: Where a resumed run goes on, counted from 0.
    """

    def __init__(
        self, data: ImageData, recipe: Recipe, spec: InputSpec, *, first_epoch: int = 0
    ) -> None:
        super().__init__()
        self.train = AugmentedSplit(data.train, training_transform(data, recipe, spec), recipe.seed)
        self.val = AugmentedSplit(data.val, evaluation_transform(data, spec))
        self.recipe = recipe
        self._first_epoch = first_epoch

    def set_epoch(self, epoch: int) -> None:
        """Chooses the random changes of an epoch; the order is chosen by Lightning."""
        self.train.set_epoch(epoch)

    @override
    def train_dataloader(self) -> Loader:
        """Returns the training loader.

        Lightning starts its workers before it sets the epoch of a resumed run; hence the epoch is
        set here already.
        """
        world, rank = self._place()
        sampler = EpochSampler(
            len(self.train), self.recipe.seed, num_replicas=world, rank=rank, drop_last=True
        )
        sampler.set_epoch(self._first_epoch)
        self.set_epoch(self._first_epoch)
        return self._loader(self.train, share_of_batch(self.recipe, len(self.train)), sampler)

    @override
    def val_dataloader(self) -> Loader:
        """Returns the validation loader."""
        world, rank = self._place()
        share = Subset(self.val, range(rank, len(self.val), world)) if world > 1 else self.val
        return self._loader(share, self.recipe.batch_size // world)

    def _place(self) -> tuple[int, int]:
        """Returns how many devices there are, and which of them this is."""
        if self.trainer is None:
            return 1, 0
        return self.trainer.world_size, self.trainer.global_rank

    def _loader(
        self,
        images: Dataset[tuple[Tensor, int]],
        batch_size: int,
        sampler: EpochSampler | None = None,
    ) -> Loader:
        workers = self.recipe.workers
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return DataLoader(
            images,
            batch_size=batch_size,
            sampler=sampler,
            drop_last=sampler is not None,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=on_gpu,
            generator=Generator(),  # the loader's own draws leave the run's stream alone
        )
