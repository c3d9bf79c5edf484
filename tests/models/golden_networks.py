"""Recorded networks: weights made by a rule under the authors' key names, and what came out."""

import json
import math
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.golden_table import GOLDEN
from visgraft.models import create_model

__all__ = ["NETWORKS", "GoldenNetwork", "build_golden"]

FOLDER = GOLDEN / "networks"
_KEPT_BUFFERS = ("attn_mask", "relative_position_index")


@dataclass(frozen=True)
class GoldenNetwork:
    """One recorded network, as tests/golden/networks/README.md describes."""

    name: str

    @cached_property
    def record(self) -> dict[str, Any]:
        return json.loads((FOLDER / f"{self.name}.json").read_text())

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return load_file(FOLDER / f"{self.name}.safetensors")

    def weights(self) -> dict[str, Tensor]:
        """Returns the state dict of the authors' network, every entry made from its key."""
        kept = {}
        for key, shape, dtype in self.record["state"]:
            if key.endswith(_KEPT_BUFFERS):
                continue  # constants that the authors' code constructs
            if dtype.startswith("int"):
                kept[key] = torch.zeros(shape, dtype=getattr(torch, dtype))
            else:
                kept[key] = self._made(key, shape)
        return kept

    def input(self) -> Tensor:
        """Returns the recorded input, or makes it by the rule."""
        if "input" in self.tensors:
            return self.tensors["input"]
        b, c, h, w = self.record["input_shape"]
        g = torch.Generator().manual_seed(self.record["input_seed"])
        coarse = torch.randn((b, c, math.ceil(h / 16), math.ceil(w / 16)), generator=g)
        coarse = coarse.repeat_interleave(16, 2).repeat_interleave(16, 3)[..., :h, :w]
        return coarse + 0.5 * torch.randn((b, c, h, w), generator=g)

    def check(self, name: str, value: Tensor) -> None:
        """Compares a value with the recorded one, by the recorded tolerance."""
        recorded = self.tensors[name]
        difference = (value.reshape(recorded.shape) - recorded).abs().max()
        largest = recorded.abs().max()
        tolerance = self.record["tolerance"]["rtol_of_max"]
        assert difference <= tolerance * largest, (
            f"{self.name}: {name} differs by {difference:.1e}, its largest value is {largest:.1e}"
        )

    def _made(self, key: str, shape: list[int]) -> Tensor:
        seed = zlib.crc32((key + self.record["weight_rule_salt"]).encode())
        n = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        vector = len(shape) <= 1 or (len(shape) == 3 and shape[1:] == [1, 1])
        if key.endswith("running_mean"):
            return 0.1 * n
        if key.endswith("running_var"):
            return 1 + 0.1 * n.abs()
        if not vector:
            return n * math.sqrt(2 / (n.numel() / shape[0]))
        if key.endswith("bias"):
            return 0.1 * n
        return self.record["weight_rule_norm_scale"] * (1 + 0.1 * n)


NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "botnet50": ("botnet50", {"img_size": 64}),
    "botnet50_s1": ("botnet_s1_50", {"img_size": 64}),
    "cotnet101": ("cotnet101", {}),
    "cotnet50": ("cotnet50", {}),
    "cotnext101_2x48d": ("cotnext101_2x48d", {}),
    "cotnext50_2x48d": ("cotnext50_2x48d", {}),
    "gcresnet101_r16_c3c5": ("gc_resnet101_r16", {}),
    "gcresnet50_r16_all": ("gc_resnet50_r16", {"context_stages": (1, 2, 3, 4)}),
    "gcresnet50_r16_c3c5": ("gc_resnet50_r16", {}),
    "gcresnet50_r4_c3c5": ("gc_resnet50_r4", {}),
    "mbv2_ca_0.5": ("mobilenetv2_ca_050", {}),
    "mbv2_ca_0.75": ("mobilenetv2_ca_075", {}),
    "mbv2_ca_1.0": ("mobilenetv2_ca_100", {}),
    "resnet18_spd": ("spd_resnet18", {"num_classes": 200}),
    "resnet26_acmix": ("resnet26_acmix", {}),
    "resnet38_acmix": ("resnet38_acmix", {}),
    "resnet50_acmix": ("resnet50_acmix", {}),
    "resnet50_dcnv1_c3c5": ("dcn_resnet50", {}),
    "resnet50_dcnv2_c3c5": ("dcnv2_resnet50", {}),
    "resnet50_spd": ("spd_resnet50", {"num_classes": 100}),
    "se_cotnetd_101": ("se_cotnetd_101", {}),
    "se_cotnetd_152": ("se_cotnetd_152", {}),
    "se_cotnetd_50": ("se_cotnetd_50", {}),
    "sknet101": ("sknet101", {}),
    "sknet50": ("sknet50", {}),
    "swin_acmix_s": ("swin_acmix_small", {}),
    "swin_acmix_t": ("swin_acmix_tiny", {}),
}


def build_golden(case: GoldenNetwork) -> nn.Module:
    """Builds our network for a case."""
    name, options = NETWORKS[case.name]
    return create_model(name, **options)
