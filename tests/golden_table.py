"""Golden cases: numbers recorded from published code, and the call of ours they belong to."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from visgraft.blocks import create_block

__all__ = ["GOLDEN", "GoldenCase", "build", "golden_cases"]

GOLDEN = Path(__file__).parent / "golden"
Options = dict[str, Any]


@dataclass(frozen=True)
class GoldenCase:
    """One recorded case, ``<family>-<case>``, as tests/golden/README.md describes."""

    name: str

    @property
    def family(self) -> str:
        """The block and whose arithmetic is recorded, such as ``cot-official``."""
        return self.name.rpartition("-")[0]

    @cached_property
    def record(self) -> dict[str, Any]:
        return json.loads((GOLDEN / f"{self.name}.json").read_text())

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return load_file(GOLDEN / f"{self.name}.safetensors")

    def named(self, prefix: str) -> dict[str, Tensor]:
        """Returns the tensors ``<prefix>.<key>`` by key."""
        start = f"{prefix}."
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}

    def tolerance(self, kind: str) -> dict[str, float]:
        """Returns the stored tolerance for ``eval``, ``train`` or ``grad`` values."""
        stored = self.record["tolerance"]
        return {"atol": stored[f"{kind}_atol"], "rtol": stored[f"{kind}_rtol"]}


def golden_cases(*families: str) -> list[GoldenCase]:
    """Returns the stored cases of the families, or of all."""
    cases = [GoldenCase(path.stem) for path in sorted(GOLDEN.glob("*.json"))]
    return [case for case in cases if not families or case.family in families]


def build(case: GoldenCase) -> nn.Module:
    """Builds our block for a case, from the arguments of the recorded class."""
    name, translate = TABLE[case.family]
    channels, options = translate(dict(case.record["kwargs"]))
    return create_block(name, channels, **options)


def _cot(kwargs: Options) -> tuple[int, Options]:
    return kwargs.pop("dim"), kwargs


def _coxt(kwargs: Options) -> tuple[int, Options]:
    return kwargs.pop("dim"), {**kwargs, "groups": 2}


def _context(kwargs: Options) -> tuple[int, Options]:
    fuse = kwargs.get("fusion_types", ("channel_add",))
    pool = {"att": "attention", "avg": "average"}[kwargs.get("pooling_type", "att")]
    options = {
        "reduction": round(1 / kwargs["ratio"]),
        "pool": pool,
        "fuse": tuple(way.removeprefix("channel_") for way in fuse),
    }
    return kwargs["inplanes"], options


def _context_copy(kwargs: Options) -> tuple[int, Options]:
    return _context(
        {
            "inplanes": kwargs["inplanes"],
            "ratio": 1 / 4,
            "pooling_type": kwargs.get("pool", "att"),
            "fusion_types": kwargs.get("fusions", ("channel_add", "channel_mul")),
        }
    )


def _coord(kwargs: Options) -> tuple[int, Options]:
    return kwargs["inp"], {"reduction": kwargs.get("reduction", kwargs.get("groups", 32))}


def _deform(kwargs: Options) -> tuple[int, Options]:
    if "channels" in kwargs:
        return kwargs["channels"], {"modulated": False, "bias": True}
    options = {"modulated": False, **kwargs}
    options["out_channels"] = options.pop("cout")
    options["offset_groups"] = options.pop("deformable_groups", 1)
    return options.pop("cin"), options


def _selective(kwargs: Options) -> tuple[int, Options]:
    kernels = tuple((3, dilation) for dilation in kwargs["dilations"])
    return kwargs["channels"], {k: kwargs[k] for k in ("groups", "stride")} | {"kernels": kernels}


def _selective_timm(kwargs: Options) -> tuple[int, Options]:
    options = {k: kwargs[k] for k in ("out_channels", "groups")}
    return kwargs["in_channels"], {**options, "min_hidden": 8}


def _selective_copy(kwargs: Options) -> tuple[int, Options]:
    ours = {"group": "groups", "L": "min_hidden"}
    return kwargs.pop("channel"), {ours.get(k, k): v for k, v in kwargs.items()}


def _acmix(kwargs: Options) -> tuple[int, Options]:
    names = {"out_planes": "out_channels", "kernel_att": "attention_size", "head": "num_heads"}
    return kwargs.pop("in_planes"), {names.get(k, k): v for k, v in kwargs.items()}


def _mhsa(kwargs: Options) -> tuple[int, Options]:
    size = (kwargs.pop("width", 14), kwargs.pop("height", 14))
    names = {"heads": "num_heads", "pos_emb": "use_position"}
    options = {names[k]: v for k, v in kwargs.items() if k in names}
    return kwargs["n_dims"], {"feature_size": size, **options}


def _lucidrains(kwargs: Options) -> tuple[int, Options]:
    options = {
        "out_channels": kwargs["heads"] * kwargs["dim_head"],
        "feature_size": kwargs["fmap_size"],
        "num_heads": kwargs["heads"],
        "head_dim": kwargs["dim_head"],
        "position": "relative" if kwargs["rel_pos_emb"] else "absolute",
    }
    return kwargs["dim"], options


def _timm(kwargs: Options) -> tuple[int, Options]:
    options = {"feature_size": kwargs["feat_size"], "num_heads": kwargs["num_heads"]}
    return kwargs["dim"], {**options, "bias": kwargs["qkv_bias"]}


TABLE: dict[str, tuple[str, Callable[[Options], tuple[int, Options]]]] = {
    "acmix-official": ("acmix", _acmix),
    "acmix-seed": ("acmix", _acmix),
    "ca-mbv2": ("coord_attention", _coord),
    "ca-official": ("coord_attention", _coord),
    "ca-seed": ("coord_attention", _coord),
    "cot-official": ("cot", _cot),
    "cot-seed": ("cot_attention", _cot),
    "coxt-official": ("cot", _coxt),
    "dcn-mmdet": ("deform_conv", _deform),
    "dcn-seed": ("deform_conv", _deform),
    "gc-official": ("global_context", _context),
    "gc-seed": ("global_context", _context_copy),
    "mhsa-lucidrains": ("bottleneck_attention", _lucidrains),
    "mhsa-seed": ("mhsa", _mhsa),
    "mhsa-timm": ("bottleneck_attention", _timm),
    "sk-caffe": ("selective_kernel", _selective),
    "sk-seed": ("sk_attention", _selective_copy),
    "sk-timm": ("selective_kernel", _selective_timm),
}
