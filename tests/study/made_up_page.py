"""The report of a made-up study in which everything is there that a report can show."""

import base64
import io
from dataclasses import replace

from PIL import Image

from tests.study.made_up_costs import cost
from tests.study.made_up_study import changed, made_up
from visgraft.study.reports.data import Trial, summarise
from visgraft.study.reports.pictures import Picture, PictureRow, Pictures

__all__ = ["full_data", "full_summary", "png"]


def png(color="orange", size=8):
    stream = io.BytesIO()
    Image.new("RGB", (size, size), color).save(stream, format="PNG")
    return stream.getvalue()


def picture(label, chance=None, *, is_right=True):
    source = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    return Picture(source, label, chance, is_right)


def full_data(**changes):
    """Measured costs, pictures, a control of another shape, and a trial that failed."""
    data = made_up()
    seeds = range(4)
    wide = tuple(
        Trial("wide", s, "finished", 91.0, 2, 50.0, 10, 20, None, f"wide-{s}", f"order-{s}")
        for s in seeds
    )
    pictures = Pictures(
        seed=0,
        images=(picture("cat"), picture("dog")),
        rows=(
            PictureRow("baseline", (picture("cat", 0.713), picture("cat", 0.5, is_right=False))),
        ),
        missing={"up": "there is no trials/up-seed0/last.ckpt"},
        grid={"baseline": (4, 4)},
    )
    fields = {
        "trials": (*data.trials, *wide),
        "controls": {"wide": "resnet10_small widened to the parameters of up"},
        "matched": {"wide": "up"},
        "other_networks": frozenset({"wide"}),
        "measured": {"baseline": cost(2), "up": cost(12), "same": cost(3, 5 << 20)},
        "measured_on": {"cpu": "A processor"},
        "measured_of": "the whole network",
        "pictures": pictures,
    }
    data = replace(data, **(fields | changes))
    return changed(data, "same", 3, status="failed", value=None, error="Traceback\nOSError: 7")


def full_summary():
    return summarise(full_data())
