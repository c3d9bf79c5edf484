"""The numbers of the report, and how they read."""

import pytest
import torch
from torch import nn

from tests.surgery import models
from visgraft.surgery import graft
from visgraft.surgery.report import amount

SHAPE = (1, 3, 32, 32)


def test_numbers_of_a_gate():
    model = models.FunctionalSkip()
    tensors, parameters = len(model.state_dict()), sum(p.numel() for p in model.parameters())
    done = graft(
        model,
        lambda site: nn.Conv2d(site.out_channels, site.out_channels, 1),
        "third",
        how="after",
        example=SHAPE,
    )
    (row,) = done.rows
    assert row.params == 64 * 64 + 64 + 64
    assert row.macs == 64 * 64 * 16 * 16
    assert (row.kept, row.tensors) == (2, 2)
    totals = done.totals
    assert (totals.kept, totals.tensors, totals.new) == (tensors, tensors, 3)
    assert totals.params == (parameters, parameters + row.params)
    assert totals.macs[1] - totals.macs[0] == row.macs


def test_numbers_of_a_replacement():
    net = nn.Sequential(models.conv(3, 8), models.conv(8, 8))
    make = lambda site: nn.Conv2d(site.in_channels, site.out_channels, 1, bias=False)  # noqa: E731
    done = graft(net, make, "1", how="replace", start="paper", example=SHAPE)
    (row,) = done.rows
    assert row.params == 64 - (9 * 64 + 8)
    assert row.macs == (64 - 9 * 64) * 32 * 32
    assert (row.kept, row.tensors) == (0, 2)
    assert (done.totals.kept, done.totals.new) == (2, 1)
    assert done.totals.macs == ((27 + 72) * 8 * 1024, (27 * 8 + 64) * 1024)


def test_text():
    model = models.FunctionalSkip().eval()
    done = graft(model, "coord_attention", "block_end", example=SHAPE)
    lines = str(done).splitlines()
    assert lines[0].split() == [
        "path",
        "kind",
        "stage",
        "how",
        "channels",
        "map",
        "parameters",
        "MACs",
        "kept",
    ]
    assert lines[2].split()[:8] == ["second", "block_end", "1", "after", "32", "32", "x", "32"]
    assert lines[2].endswith("2 of 2")
    assert lines[-1].startswith(
        "14 of 14 tensors kept, 24 new; parameters 112 k -> 115 k (+2.4 %); MACs 43"
    )
    assert lines[-1].endswith("; max difference 0")
    assert done.table() == "\n".join(lines[:-1])
    assert repr(done) == "<Graft of 'coord_attention' at 2 sites>"
    assert max(map(len, lines)) < 150


def test_max_difference_is_that_of_now_and_leaves_no_trace():
    model = models.SharedLayer()
    model.pool.eval()
    done = graft(model, "coord_attention", "stem", example=SHAPE)
    state = torch.get_rng_state()
    assert done.max_difference == 0.0
    with torch.no_grad():
        done.parameters()[0].fill_(1.0)
    assert done.max_difference > 1e-4
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in (model, model.stem, model.pool)] == [True, True, False]


def test_max_difference_looks_at_all_outputs():
    model = models.Containers()
    done = graft(model, "coord_attention", "named.only", how="after", start="paper", example=SHAPE)
    assert done.max_difference > 0


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1 k"),
        (999_499, "999 k"),
        (999_500, "1 M"),
        (-53_200, "-53.2 k"),
        (1_814_073_344, "1.81 G"),
    ],
)
def test_amount(number, text):
    assert amount(number) == text
