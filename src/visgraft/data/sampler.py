"""The order in which a training sees its images, a function of (seed, epoch) and nothing else."""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from visgraft.data._seeds import mix_seed

__all__ = ["EpochSampler"]


class EpochSampler(Sampler[int]):
    """Shuffles ``size`` indices anew in each epoch, the same way in every run of one seed.

    The order does not touch or depend on a global random state, so two networks trained with one
    seed see the same images in the same order, and a resumed training goes on as if it had not
    stopped. Call `set_epoch` before each epoch (Lightning does).

    Several processes share an epoch: each takes every ``num_replicas``-th index from its ``rank``
    on. All of them get the same number of indices; where ``size`` does not divide evenly the order
    is filled up from its own beginning, or cut with ``drop_last``.

    Args:
        size: Number of images.
        seed: Seed of the order.
        shuffle: ``False`` gives ``0 .. size - 1`` in each epoch.
        num_replicas: Number of processes that share an epoch.
        rank: Which of them this is, from 0.
        drop_last: Cut the order to a multiple of ``num_replicas`` instead of filling it up.

    Raises:
        ValueError: If ``size`` or ``num_replicas`` is below 1, ``rank`` is not in
            ``0 .. num_replicas - 1``, or ``drop_last`` leaves nothing.

    Example:
        >>> sampler = EpochSampler(5, seed=1)
        >>> sorted(sampler), list(sampler) == list(EpochSampler(5, seed=1))
        ([0, 1, 2, 3, 4], True)
    """

    def __init__(
        self,
        size: int,
        seed: int = 0,
        *,
        shuffle: bool = True,
        num_replicas: int = 1,
        rank: int = 0,
        drop_last: bool = False,
    ) -> None:
        if size < 1 or num_replicas < 1:
            raise ValueError(
                f"EpochSampler: size and num_replicas must be at least 1, got {size} and "
                f"{num_replicas}"
            )
        if not 0 <= rank < num_replicas:
            raise ValueError(
                f"EpochSampler: rank must be in 0 .. {num_replicas - 1}, got {rank} "
                f"with num_replicas={num_replicas}"
            )
        if drop_last and size < num_replicas:
            raise ValueError(
                f"EpochSampler: drop_last leaves nothing of {size} images for {num_replicas} "
                "processes; use fewer processes or drop_last=False"
            )
        self.size = size
        self.seed = seed
        self.shuffle = shuffle
        self.num_replicas = num_replicas
        self.rank = rank
        self.drop_last = drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        share = self.size if self.drop_last else self.size + self.num_replicas - 1
        return share // self.num_replicas

    def __iter__(self) -> Iterator[int]:
        return iter(self._order(self.epoch)[self.rank :: self.num_replicas].tolist())

    def digest(self, epochs: int) -> str:
        """Returns the SHA-256 (hex) of the indices of the first ``epochs`` epochs, all ranks.

        Equal digests prove that two trainings saw the same images in the same order.
        """
        stream = hashlib.sha256()
        for epoch in range(epochs):
            stream.update(self._order(epoch).numpy().astype("<i8").tobytes())
        return stream.hexdigest()

    def _order(self, epoch: int) -> Tensor:
        """Returns the indices of an epoch for all ranks together."""
        if self.shuffle:
            generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch))
            order = torch.randperm(self.size, generator=generator)
        else:
            order = torch.arange(self.size)
        total = len(self) * self.num_replicas
        return order.repeat(-(-total // self.size))[:total]
