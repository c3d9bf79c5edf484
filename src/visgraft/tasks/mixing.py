"""timm's mixup and CutMix with random choices that depend on (seed, epoch, step) alone."""

import numpy as np
from timm.data.mixup import Mixup
from torch import Tensor

from visgraft.tasks.randomness import derive_seed

__all__ = ["Mixing"]


class Mixing:
    """Mixes each image of a batch, and its target, with another one of the batch.

    Args:
        num_classes: Length of a target.
        mixup: Alpha of mixup; 0 is off.
        cutmix: Alpha of CutMix; 0 is off. With both on, each batch takes one of them.
        label_smoothing: Of the targets, 0 to 1.
        seed: Of all choices.
    """

    def __init__(
        self, num_classes: int, *, mixup: float, cutmix: float, label_smoothing: float, seed: int
    ) -> None:
        self.seed = seed
        self._mix = Mixup(
            mixup_alpha=mixup,
            cutmix_alpha=cutmix,
            label_smoothing=label_smoothing,
            num_classes=num_classes,
        )

    def __call__(self, images: Tensor, labels: Tensor, *when: int) -> tuple[Tensor, Tensor]:
        """Returns mixed images, in place, and targets ``(B, classes)``.

        Args:
            images: ``(B, C, H, W)``, B even.
            labels: ``(B,)``.
            when: What the choices depend on: rank, epoch, step.
        """
        state = np.random.get_state()  # timm draws from NumPy's global stream
        try:
            np.random.seed(derive_seed(self.seed, "mixing", *when) % 2**32)
            return self._mix(images, labels)
        finally:
            np.random.set_state(state)
