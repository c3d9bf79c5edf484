"""timm's ResNet as the trunk of the papers' networks."""

from typing import ClassVar

from timm.models.resnet import ResNet
from torch import nn

__all__ = ["PaperResNet"]


class PaperResNet(ResNet):
    """timm's ResNet, where chosen layers keep the initialisation they were constructed with.

    timm draws the weights of every convolution anew, those inside a block of ours included.
    """

    keeps_initialisation: ClassVar[tuple[type[nn.Module], ...]] = ()

    def init_weights(self, zero_init_last: bool = True) -> None:
        """Draws the weights of the convolutions from He's distribution (fan out)."""
        kept = {
            id(inner)
            for module in self.modules()
            if isinstance(module, self.keeps_initialisation)
            for inner in module.modules()
        }
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and id(module) not in kept:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            zero = getattr(module, "zero_init_last", None)
            if zero_init_last and callable(zero):
                zero()
