"""A feature pyramid on a timm network, as torchvision's detectors want their backbone.

Paper: Lin, Dollar, Girshick, He, Hariharan and Belongie, "Feature Pyramid Networks for Object
    Detection", CVPR 2017, https://arxiv.org/abs/1612.03144, section 3.
"""

from collections import OrderedDict
from collections.abc import Sequence, Set
from typing import Self

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from visgraft.tasks.detection.features import FeaturePlan, prune, take_maps
from visgraft.tasks.detection.freezing import freeze_norms, freeze_stages

__all__ = ["PyramidBackbone"]


class PyramidBackbone(nn.Module):
    """Runs a network up to its last map and a feature pyramid on the maps.

    The network stays the object that it is, under ``network`` and with its own names of layers, so
    that patterns of :func:`visgraft.graft` and weights fit as for classification.

    Args:
        network: A classification network of timm's kind; :meth:`adopt` takes its classifier off.
        plan: Which of its maps are taken.
        in_chans: Channels of an image.
        channels: Of every map of the pyramid.
        extra_blocks: Makes further maps of the last one.

    Shape:
        Input ``(B, in_chans, H, W)``; a dict of maps ``(B, channels, H / r, W / r)`` by the names
        ``"0"``, ``"1"`` ... for the network's maps and those that ``extra_blocks`` gives.
    """

    def __init__(
        self,
        network: nn.Module,
        plan: FeaturePlan,
        *,
        in_chans: int = 3,
        channels: int = 256,
        extra_blocks: ExtraFPNBlock | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.fpn = FeaturePyramidNetwork(list(plan.channels), channels, extra_blocks)
        self.out_channels = channels
        self.in_chans = in_chans
        self.indices: Sequence[int] = plan.indices
        self.reductions = plan.reductions
        self._held: list[nn.Module] = []

    def adopt(
        self,
        *,
        frozen_stages: int = 0,
        frozen_norm: bool = False,
        learning: Set[nn.Parameter] = frozenset(),
    ) -> None:
        """Takes off what the maps do not need and freezes what is to stay as it is.

        Args:
            frozen_stages: How many stages are frozen, the stem with the first of them.
            frozen_norm: Whether every BatchNorm of the network is.
            learning: Parameters that are not frozen wherever they are.
        """
        frozen = freeze_stages(self.network, self.in_chans, frozen_stages, learning)
        if frozen_norm:
            frozen += freeze_norms(self.network, learning)
        self.indices = tuple(prune(self.network, self.indices))
        self._held = list(dict.fromkeys(frozen))
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of all modules but the frozen ones, which stay in evaluation mode."""
        super().train(mode)
        for module in self._held:
            module.training = False
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns the maps of the pyramid, the largest first."""
        maps = take_maps(self.network, images, self.indices)
        return self.fpn(OrderedDict((str(i), m) for i, m in enumerate(maps)))
