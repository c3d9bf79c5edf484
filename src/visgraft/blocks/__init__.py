"""Published attention and convolution blocks, one file per paper; the imports are the catalogue."""

from visgraft.blocks._published import (
    Layout,
    LoadReport,
    layouts_of,
    load_published,
    register_layouts,
    translate_published,
)
from visgraft.blocks._registry import (
    BlockInfo,
    Paper,
    Source,
    UnknownBlockError,
    block_info,
    create_block,
    list_blocks,
    register_block,
)
from visgraft.blocks.acmix import ACmix
from visgraft.blocks.bottleneck_attention import MHSA, BottleneckAttention
from visgraft.blocks.coord_attention import CoordAttention
from visgraft.blocks.cot import ContextualTransformer, CoTAttention
from visgraft.blocks.deform_conv import DeformConv
from visgraft.blocks.global_context import GlobalContext
from visgraft.blocks.selective_kernel import SelectiveKernel, SKAttention
from visgraft.blocks.spd_conv import SpaceToDepth, SPDConv

__all__ = [
    "MHSA",
    "ACmix",
    "BlockInfo",
    "BottleneckAttention",
    "CoTAttention",
    "ContextualTransformer",
    "CoordAttention",
    "DeformConv",
    "GlobalContext",
    "Layout",
    "LoadReport",
    "Paper",
    "SKAttention",
    "SPDConv",
    "SelectiveKernel",
    "Source",
    "SpaceToDepth",
    "UnknownBlockError",
    "block_info",
    "create_block",
    "layouts_of",
    "list_blocks",
    "load_published",
    "register_block",
    "register_layouts",
    "translate_published",
]
