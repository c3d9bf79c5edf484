"""Blocks: ours, the copy that circulates, timm's where it has one, and a 3 x 3 convolution."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from visgraft.blocks import create_block, load_published
from visgraft.blocks.deform_conv import DeformConv
from visgraft.inspect.bench import circulating_forms as circulating
from visgraft.inspect.bench.cases import Case, CaseMaker, Form
from visgraft.inspect.bench.op_cases import CPU_MAPS, CUDA_MAPS
from visgraft.inspect.cost import cost

__all__ = ["BLOCKS", "block_cases"]

QUICK_MAPS = ((2, 64, 9, 9),)
Maker = Callable[[tuple[int, ...]], dict[str, nn.Module]]


def block_cases(device: torch.device, *, quick: bool = False) -> Iterator[CaseMaker]:
    """Yields makers of the cases of all blocks, in float32."""
    maps = QUICK_MAPS if quick else CUDA_MAPS if device.type == "cuda" else CPU_MAPS
    for name in BLOCKS:
        for shape in maps:
            if name in _QUADRATIC and shape[2] * shape[3] > 2000:
                shape = (max(1, shape[0] // 4), *shape[1:])  # every pair of positions in memory
            yield CaseMaker(name, shape, partial(_case, name, shape, device))


def _case(name: str, shape: tuple[int, ...], device: torch.device) -> Case:
    torch.manual_seed(0)
    channels = shape[1]
    modules = {"conv3x3": nn.Conv2d(channels, channels, 3, padding=1, bias=False)}
    modules |= BLOCKS[name](shape)
    forms = {
        label: Form(
            module.to(device),
            module,
            refusal=_odd if isinstance(module, circulating.SPDConv) else lambda *_: None,
            same_as="visgraft" if label in ("circulating", "torchvision") else None,
            macs=cost(module, shape).macs if _counts(module, shape) else None,
        )
        for label, module in modules.items()
    }
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device)
    return Case(name, shape, (x,), forms, "conv3x3", ours="visgraft")


def _odd(x: Tensor) -> str | None:
    return "fails on odd maps" if x.shape[2] % 2 or x.shape[3] % 2 else None


def _counts(module: nn.Module, shape: tuple[int, ...]) -> bool:
    return (
        not isinstance(module, circulating.SPDConv)
        or _odd(torch.empty(shape, device="meta")) is None
    )


def _ours(name: str, copy: nn.Module, channels: int, **options: Any) -> dict[str, nn.Module]:
    """Returns our block with the weights of the copy, and the copy."""
    for parameter in copy.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.02)  # zero at the start would hide a difference
    block = create_block(name, channels, **options)
    load_published(block, copy.state_dict())
    return {"visgraft": block, "circulating": copy}


def _acmix(shape: tuple[int, ...]) -> dict[str, nn.Module]:
    return _ours("acmix", circulating.ACmix(shape[1]), shape[1])


def _bottleneck_attention(shape: tuple[int, ...]) -> dict[str, nn.Module]:
    from timm.layers.bottleneck_attn import BottleneckAttn

    size = shape[2:]
    theirs = BottleneckAttn(shape[1], feat_size=(size[0], size[1]), scale_pos_embed=True)
    return {
        "visgraft": create_block("bottleneck_attention", shape[1], feature_size=size),
        "timm": theirs,
    }


def _coord_attention(shape: tuple[int, ...]) -> dict[str, nn.Module]:
    from timm.layers.coord_attn import CoordAttn

    both = _ours("coord_attention", circulating.CoordAtt(shape[1]), shape[1])
    return {**both, "timm": CoordAttn(shape[1], rd_channels=max(8, shape[1] // 32))}


def _cot(shape: tuple[int, ...]) -> dict[str, nn.Module]:
    return _ours("cot", circulating.CotLayer(shape[1]), shape[1])


def _cot_attention(shape: tuple[int, ...]) -> dict[str, nn.Module]:
    return _ours("cot_attention", circulating.CoTAttention(shape[1]), shape[1])


def _deform_conv(shape: tuple[int, ...]) -> dict[str, nn.Module]:
    block = create_block("deform_conv", shape[1])
    offset = block.get_submodule("offset")
    for parameter in offset.parameters():
        nn.init.normal_(parameter, std=0.02)
    return {"visgraft": block, "torchvision": _ByTorchvision(block)}


def _global_context(shape: tuple[int, ...]) -> dict[str, nn.Module]:
    from timm.layers.global_context import GlobalContext

    hidden = max(2, shape[1] // 16)
    theirs = GlobalContext(shape[1], fuse_add=True, fuse_scale=False, rd_channels=hidden)
    return {"visgraft": create_block("global_context", shape[1]), "timm": theirs}


def _context_that_multiplies(shape: tuple[int, ...]) -> dict[str, nn.Module]:
    return _ours("CB2d", circulating.CB2d(shape[1]), shape[1])


def _mhsa(shape: tuple[int, ...]) -> dict[str, nn.Module]:
    return _ours("mhsa", circulating.MHSA(shape[1]), shape[1])


def _selective_kernel(shape: tuple[int, ...]) -> dict[str, nn.Module]:
    from timm.layers.selective_kernel import SelectiveKernel

    def theirs(**options: Any) -> nn.Module:
        return SelectiveKernel(shape[1], rd_channels=max(32, shape[1] // 16), **options)

    return {
        "visgraft": create_block("selective_kernel", shape[1]),
        "timm": theirs(groups=32, split_input=False),
        "timm, split input": theirs(),
    }


def _sk_attention(shape: tuple[int, ...]) -> dict[str, nn.Module]:
    return _ours("sk_attention", circulating.SKAttention(shape[1]), shape[1])


def _spd_conv(shape: tuple[int, ...]) -> dict[str, nn.Module]:
    copy = circulating.SPDConv(shape[1])
    block = create_block("spd_conv", shape[1])
    block.load_state_dict(copy.state_dict())
    strided = nn.Conv2d(shape[1], shape[1], 3, stride=2, padding=1, bias=False)
    return {"visgraft": block, "circulating": copy, "strided conv3x3": strided}


class _ByTorchvision(nn.Module):
    """The same layer by torchvision's operator."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        from torchvision.ops import deform_conv2d

        block = self.block
        if not isinstance(block, DeformConv):
            raise TypeError(f"expected a DeformConv, got {type(block).__name__}")
        moves = block.offset(x)
        offset, logits = moves.split([18, 9], 1)
        mask = block.mask_scale * logits.sigmoid()
        return deform_conv2d(x, offset, block.weight, padding=(1, 1), mask=mask)


_QUADRATIC = ("bottleneck_attention", "mhsa")
BLOCKS: dict[str, Maker] = {
    "cot": _cot,
    "cot_attention": _cot_attention,
    "acmix": _acmix,
    "bottleneck_attention": _bottleneck_attention,
    "mhsa": _mhsa,
    "coord_attention": _coord_attention,
    "global_context": _global_context,
    "global_context, add and mul": _context_that_multiplies,
    "selective_kernel": _selective_kernel,
    "sk_attention": _sk_attention,
    "spd_conv": _spd_conv,
    "deform_conv": _deform_conv,
}
