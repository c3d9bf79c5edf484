"""BottleneckAttention and MHSA beside golden values and the contract."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from visgraft.blocks import MHSA, BottleneckAttention, block_info, create_block, load_published
from visgraft.blocks._position_tables import resized


def test_defaults_are_the_papers():
    block = BottleneckAttention(512)
    assert block.qkv.weight.shape == (3 * 512, 512, 1, 1)
    assert block.qkv.bias is None
    assert block.offset_rows.shape == block.offset_columns.shape == (27, 128)
    assert block.num_heads == 4
    assert block.offset_rows.std().item() == pytest.approx(128**-0.5, rel=0.1)


def test_parameters_of_the_circulating_form():
    count = [sum(p.numel() for p in MHSA(512, use_position=u).parameters()) for u in (False, True)]
    assert count == [787_968, 802_304]
    assert MHSA(512, use_position=True).rows.std().item() == pytest.approx(1, rel=0.1)


def test_names_lead_here():
    assert block_info("BottleneckAttn").cls is BottleneckAttention
    assert block_info("MHSA").cls is MHSA


@pytest.mark.parametrize("size", [(6, 5), (20, 21)], ids=str)
def test_formula(size):
    """The published formula, term by term; also where the logits are not held in memory."""
    h, w = size
    block = BottleneckAttention(6, feature_size=size, num_heads=2).double()
    x = torch.randn(2, 6, h, w, dtype=torch.float64)
    query, key, value = block.qkv(x).view(2, 3, 2, 3, h, w).unbind(1)
    y, q = torch.arange(h), torch.arange(w)
    rows = block.offset_rows[y - y[:, None] + h - 1]  # (H, H, D)
    columns = block.offset_columns[q - q[:, None] + w - 1]
    query = query / 3**0.5
    logits = torch.einsum("bmdyx,bmdpq->bmyxpq", query, key)
    logits += torch.einsum("bmdyx,ypd->bmyxp", query, rows)[..., None]
    logits += torch.einsum("bmdyx,xqd->bmyxq", query, columns)[..., None, :]
    attention = logits.flatten(4).softmax(4).view_as(logits)
    expected = torch.einsum("bmyxpq,bmdpq->bmdyx", attention, value).flatten(1, 2)
    assert_close(block(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("position", ["relative", "absolute"])
def test_resized_tables_equal_a_block_built_for_the_map(position):
    options = {"num_heads": 2, "position": position}
    small = BottleneckAttention(8, feature_size=(4, 6), **options)
    large = BottleneckAttention(8, feature_size=(9, 5), **options)
    report = load_published(large, small.state_dict())
    assert report.layout == "visgraft, another feature_size"
    x = torch.randn(2, 8, 9, 5)
    assert_close(large(x), small(x), rtol=1e-5, atol=1e-6)


def testresized():
    table = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0]], requires_grad=True)
    assert resized(table, 5) is table
    assert resized(table, 1).tolist() == [[2.0]]  # the middle: no offset
    assert_close(resized(table, 3), torch.tensor([[1 / 3], [2.0], [11 / 3]]))
    larger = resized(table, 9)
    assert (larger[4].item(), larger[0].item(), larger[8].item()) == (2.0, 0.0, 4.0)
    assert (larger.diff(dim=0) >= 0).all()
    (gradient,) = torch.autograd.grad(larger.sum(), table)
    assert gradient.sum().item() == pytest.approx(9)


def test_resized_places_entries_exactly_in_lower_precision():
    """bfloat16 cannot count beyond 256."""
    table = torch.linspace(-1, 1, 27)[:, None].bfloat16()
    expected = resized(table.float(), 601).bfloat16()
    assert_close(resized(table, 601), expected, rtol=0, atol=0)


def test_stride_averages_what_is_there():
    block = BottleneckAttention(4, num_heads=2, stride=2)
    plain = BottleneckAttention(4, num_heads=2)
    plain.load_state_dict(block.state_dict())
    x = torch.randn(1, 4, 5, 4)
    full = plain(x)
    assert_close(block(x)[..., :2, :], torch.nn.functional.avg_pool2d(full, 2))
    assert_close(block(x)[..., 2, 0], full[..., 4, :2].mean(2))


def test_position_matters_and_none_does_not():
    """Without position the attention is blind to where things are; with it, not."""
    x = torch.randn(1, 8, 4, 5, dtype=torch.float64)
    order = torch.randperm(20)
    shuffled = x.flatten(2)[..., order].view_as(x)
    for position, blind in ((None, True), ("relative", False), ("absolute", False)):
        block = BottleneckAttention(8, num_heads=2, position=position).double()
        moved = block(x).flatten(2)[..., order].view_as(x)
        assert torch.allclose(block(shuffled), moved) is blind


def test_relative_position_is_of_the_key_minus_the_query():
    """With one entry for the row below, each query takes the value of its lower neighbour."""
    block = BottleneckAttention(1, num_heads=1, feature_size=(4, 3)).double()
    with torch.no_grad():
        block.qkv.weight.copy_(torch.tensor([0.0, 0.0, 1.0]).view(3, 1, 1, 1))
        block.offset_rows.zero_()[4] = 1000.0  # one row below
        block.offset_columns.zero_()[2] = 1000.0  # same column
        block.qkv.bias = torch.nn.Parameter(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
    x = torch.randn(1, 1, 4, 3, dtype=torch.float64)
    assert_close(block(x)[:, :, :3], x[:, :, 1:])


def test_large_maps_keep_no_square():
    for block in (
        BottleneckAttention(4, num_heads=1),
        BottleneckAttention(4, num_heads=1, position="absolute"),
        BottleneckAttention(4, num_heads=1, position=None, head_dim=2),
        MHSA(4, num_heads=1, feature_size=(41, 41), use_position=True),
    ):
        largest = 0

        def pack(tensor):
            nonlocal largest
            largest = max(largest, tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            block(torch.randn(1, 4, 41, 41))
        assert largest < 41**4 / 20


def test_circulating_form_is_one_function_on_both_sides_of_the_limit(monkeypatch):
    block = MHSA(8, feature_size=(5, 7), num_heads=2, use_position=True).double()
    x = torch.randn(2, 8, 5, 7, dtype=torch.float64)
    direct = block(x)
    monkeypatch.setattr("visgraft.blocks.bottleneck_attention._MOST_DIRECT", 0)
    assert_close(block(x), direct, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["mhsa", "bottleneck_attention"])
@pytest.mark.parametrize("traced", [(7, 5), (9, 8)], ids=str)
def test_exported_tables_serve_their_own_size_and_others(name, traced, monkeypatch):
    """Whatever map was the example; also beyond the size up to which logits are held."""
    monkeypatch.setattr("visgraft.blocks.bottleneck_attention._MOST_DIRECT", 50)
    options = {"use_position": True} if name == "mhsa" else {}
    block = create_block(name, 4, feature_size=(9, 8), num_heads=1, **options).eval()
    dynamic = (dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),)
    program = torch.export.export(block, (torch.randn(2, 4, *traced),), dynamic_shapes=dynamic)
    for size in ((3, 4), (9, 8), (8, 9)):
        x = torch.randn(1, 4, *size)
        assert_close(program.module()(x), block(x), rtol=1e-5, atol=1e-5)


def test_jdai_layout():
    torch.manual_seed(1)
    block = BottleneckAttention(6, num_heads=2, feature_size=(3, 2)).double()
    published = {f"{name}_proj.w": torch.randn(6, 2, 3) for name in "qkv"}
    published["self_attention.rel_emb_w"] = torch.randn(3, 3)
    published["self_attention.rel_emb_h"] = torch.randn(5, 3)
    report = load_published(block, {f"module.{k}": v for k, v in published.items()})
    assert report.layout == "JDAI-CV/CoTNet"
    x = torch.randn(2, 6, 3, 2, dtype=torch.float64)
    parts = block.qkv(x).chunk(3, 1)
    for name, part in zip("qkv", parts, strict=True):
        weight = published[f"{name}_proj.w"].double()
        expected = torch.einsum("bchw,cnp->bnphw", x, weight).flatten(1, 2)
        assert_close(part, expected)
    assert_close(block.offset_rows, published["self_attention.rel_emb_h"].double())


def test_published_tables_of_another_map_areresized():
    state = {"qkv.weight": torch.randn(24, 8, 1, 1)}
    state |= {"pos_embed.height_rel": torch.randn(27, 4), "pos_embed.width_rel": torch.randn(27, 4)}
    block = BottleneckAttention(8, num_heads=2, feature_size=(14, 20))
    assert load_published(block, state).layout == "timm"
    assert torch.equal(block.offset_rows, state["pos_embed.height_rel"])
    assert_close(block.offset_columns, resized(state["pos_embed.width_rel"], 39))


def test_absolute_tables_are_not_taken_for_relative_ones():
    state = {"to_qkv.weight": torch.randn(24, 8, 1, 1)}
    state |= {"pos_emb.height": torch.randn(14, 4), "pos_emb.width": torch.randn(14, 4)}
    message = r"missing.* offset_rows, offset_columns; unexpected pos_emb\.height"
    with pytest.raises(ValueError, match=message):
        load_published(BottleneckAttention(8, num_heads=2), state)


def test_representation():
    assert "num_heads=2, position=absolute, rows=3, columns=5" in repr(
        BottleneckAttention(4, num_heads=2, position="absolute", feature_size=(3, 5))
    )


SMALL = st.integers(-1, 6)


@settings(max_examples=30, deadline=None)
@given(
    channels=SMALL,
    options=st.fixed_dictionaries(
        {},
        optional={
            "out_channels": st.none() | SMALL,
            "num_heads": SMALL,
            "head_dim": st.none() | SMALL,
            "feature_size": st.lists(SMALL, min_size=1, max_size=3),
            "position": st.sampled_from(["relative", "absolute", None, "both"]),
            "bias": st.booleans(),
            "stride": SMALL,
        },
    ),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_any_configuration_works_or_is_refused(channels, options, size):
    try:
        block = create_block("bottleneck_attention", channels, **options)
    except ValueError as error:
        if not str(error).startswith("BottleneckAttention: "):
            raise
        return
    stride = options.get("stride", 1)
    out = options.get("out_channels") or channels
    shape = (2, out, *(-(-n // stride) for n in size))
    assert block(torch.randn(2, channels, *size)).shape == shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, r"channels must be an integer >= 1, got 0"),
        ({"out_channels": 6}, r"out_channels must be a multiple of 4 \(the heads\), got 6"),
        ({"out_channels": 2.0}, r"out_channels must be an integer >= 1, got 2\.0"),
        ({"num_heads": 0}, r"num_heads must be an integer >= 1, got 0"),
        ({"head_dim": 0}, r"head_dim must be an integer >= 1, got 0"),
        ({"stride": 0}, r"stride must be an integer >= 1, got 0"),
        ({"position": "Relative"}, r"position must be 'relative' or 'absolute' or None, got 'Rel"),
        ({"bias": 1}, r"bias must be True or False, got 1"),
        ({"feature_size": 14}, r"feature_size must be the rows and columns of a map, .* got 14"),
        ({"feature_size": (1, 2, 3)}, r"feature_size must be the rows and columns of a map"),
        ({"feature_size": (0, 2)}, r"feature_size\[0\] must be an integer >= 1, got 0"),
        ({"feature_size": (2, 1.5)}, r"feature_size\[1\] must be an integer >= 1, got 1\.5"),
    ],
)
def test_rejects_arguments(options, message):
    with pytest.raises(ValueError, match=f"BottleneckAttention: {message}"):
        BottleneckAttention(**{"channels": 8, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": -4}, r"channels must be an integer >= 1, got -4"),
        ({"num_heads": 3}, r"channels must be a multiple of 3 \(the heads\), got 8"),
        ({"num_heads": True}, r"num_heads must be an integer >= 1, got True"),
        ({"use_position": "yes"}, r"use_position must be True or False, got 'yes'"),
        ({"feature_size": "14"}, r"feature_size must be the rows and columns of a map"),
    ],
)
def test_circulating_form_rejects_arguments(options, message):
    with pytest.raises(ValueError, match=f"MHSA: {message}"):
        MHSA(**{"channels": 8, **options})


@pytest.mark.parametrize("cls", [BottleneckAttention, MHSA])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(1, 4, 3, 5), r"expected \(B, 8, H, W\), got \(1, 4, 3, 5\)"),
        (torch.zeros(8, 3, 5), r"expected \(B, 8, H, W\), got \(8, 3, 5\)"),
        (torch.zeros(1, 8, 0, 5), r"expected \(B, 8, H, W\), got \(1, 8, 0, 5\)"),
        (torch.zeros(1, 8, 3, 5, dtype=torch.long), r"expected a floating-point map, got torch"),
    ],
)
def test_rejects_inputs(cls, x, message):
    with pytest.raises(ValueError, match=f"{cls.__name__}: {message}"):
        cls(8)(x)


def test_circulating_form_refuses_maps_beyond_its_table():
    block = MHSA(8, feature_size=(4, 5), use_position=True)
    with pytest.raises(ValueError, match=r"the map has 7 x 3 positions, more than .* \(4, 5\)"):
        block(torch.zeros(1, 8, 7, 3))
