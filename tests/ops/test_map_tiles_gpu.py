"""How maps are divided among programs of a GPU."""

import pytest
import torch

from visgraft.ops._map_tiles.division import Division
from visgraft.ops._map_tiles.strips import StripDivision

SHAPES = [(1, 128, 2048, 2048), (1, 3, 8192, 8192), (256, 64, 56, 56), (1, 512, 7, 7), (1, 1, 1, 9)]


@pytest.mark.parametrize("one_tile", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_programs_fit_a_grid_and_cover_the_map(shape, memory_format, one_tile):
    x = torch.empty(shape, device="meta").to(memory_format=memory_format)
    _, channels, height, width = shape
    whole = Division.of(x, one_tile=one_tile)
    strips = StripDivision.of(x, one_tile=one_tile)
    assert max(whole.programs[1], strips.programs[1]) <= 65535
    each = whole.options["steps"] * whole.options["POSITIONS"]
    assert (whole.parts - 1) * each < height * width <= whole.parts * each
    each = strips.options["steps"] * strips.options["ROWS"]
    assert (strips.row_parts - 1) * each < height <= strips.row_parts * each
    assert width <= strips.column_parts * strips.options["COLUMNS"]
    for division, blocks in ((whole, whole.programs[0]), (strips, strips.blocks)):
        assert blocks % shape[0] == 0
        assert blocks // shape[0] * division.options["CHANNELS"] >= channels


def test_a_single_image_of_few_channels_fills_a_gpu():
    x = torch.empty(1, 16, 512, 512, device="meta")
    assert 1000 <= Division.of(x).programs[0] * Division.of(x).parts <= 2048
    rows = StripDivision.of(x)
    assert 500 <= rows.blocks * rows.programs[1] <= 2048
    assert Division.of(torch.empty(256, 64, 56, 56, device="meta")).parts == 1
