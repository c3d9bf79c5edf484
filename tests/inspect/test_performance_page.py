"""What the page of results is made of: tables of networks, layouts and profiles, merged results."""

import pytest
import torch
from benchmarks.merge_results import merged
from benchmarks.performance_tables import (
    compiled_table,
    is_plain,
    network_table,
    profile_table,
    variant_table,
)
from benchmarks.performance_targets import TARGETS, Results
from benchmarks.profile_targets import FILE, PROFILED, shares
from benchmarks.write_performance import page, read_profile

MIB = 2**20


def timing(*readings, base=(1.0, 1.0, 1.0), mib=1):
    ratios = sorted(own / its for own, its in zip(readings, base, strict=True))
    return {
        "seconds": sorted(readings)[1],
        "ratio": ratios[1],
        "readings": list(readings),
        "peak_memory": mib * MIB,
    }


def record(case, shape, timings, **more):
    plain = {"dtype": "float32", "channels_last": False, "step": "forward", "ours": "visgraft"}
    place = {"case": case, "shape": list(shape), "baseline": "conv3x3", "device": "cpu"}
    return {**place, **plain, "timings": timings, **more}


def document(*records, date="2026-01-01", **more):
    run = {"allocator": "tuned", "threads": 1, "clock": "cpu", "records": list(records)}
    machine = {"cpu": "a", "cpu_capability": "b", "cores": 2, "torch": "2", "visgraft": "0"}
    run["limits"] = {"copy_small": 2e9, "copy_large": 1e9, "multiply": 3e9}
    plain = {"device": "cpu", "quick": False, "machine": machine, "runs": [run], "date": date}
    return {**plain, **more}


def test_networks_are_shown_in_images_per_second():
    timings = {"resnet50": timing(2, 4, 6, mib=3), "cotnet50": timing(1, 2, 3, base=(2, 4, 6))}
    network = record("cotnet50", (8, 3, 224, 224), timings)
    block = record("cot", (8, 64, 56, 56), timings)
    text = network_table([document(block), document(network, {**network, "step": "both"})])
    assert text.splitlines()[2:] == [
        "| cotnet50 | inference | 8 | resnet50 | 2.00 | 4.00 | 3 |",
        "| cotnet50 | inference | 8 | cotnet50 | 4.00 | 0.50 | 1 |",
        "| cotnet50 | training | 8 | resnet50 | 2.00 | 4.00 | 3 |",
        "| cotnet50 | training | 8 | cotnet50 | 4.00 | 0.50 | 1 |",
    ]


@pytest.mark.parametrize("label", ["contiguous", "float32", "contiguous float32"])
def test_another_layout_is_held_against_the_form_as_it_was(label):
    timings = {
        "conv3x3": timing(0.1, 0.1, 0.1),
        "visgraft": timing(0.2, 0.3, 0.9, mib=6),
        "circulating": timing(5, 5, 5),
        f"conv3x3, {label}": timing(0.2, 0.2, 0.2),
        f"visgraft, {label}": timing(0.4, 0.2, 0.3, mib=4),
    }
    text = variant_table(document(record("cot", (2, 3), timings)))
    assert text.splitlines()[2:] == [
        "| cot | 2 x 3 | forward | 300.00 | 1.50 | 0.50 | 0.30 | 1.50 |"
    ]
    alone = {name: timings[name] for name in ("conv3x3", "visgraft")}
    text = variant_table(document(record("cot", (2, 3), alone)))
    assert text.splitlines()[2:] == ["| cot | 2 x 3 | forward | 300.00 | - | - | 0.30 | - |"]


def test_compiled_forms_are_held_against_ours():
    timings = {
        "conv3x3": timing(1, 1, 1),
        "visgraft": timing(2, 4, 8),
        "visgraft, compiled": timing(1, 1, 4),
        "circulating": timing(4, 8, 8),
        "circulating, compiled": timing(3, 6, 12),
    }
    one = record("cot", (2, 3), timings, graph_breaks={"visgraft, compiled": 2})
    text = compiled_table(document(one))
    assert text.splitlines()[2:] == ["| cot | 2 x 3 | forward | 4000.00 | 0.50 | 2.00 | 1.50 | 2 |"]
    del timings["circulating, compiled"], timings["circulating"]
    assert "| 0.50 | - | - | 2 |" in compiled_table(document(one))


def test_only_plain_documents_fill_the_targets():
    timings = {"cot": timing(1, 1, 1)}
    plain = record("cot", (1,), timings)
    assert is_plain(document(plain))
    for more in ({"dtype": "bfloat16"}, {"channels_last": True}, {"graph_breaks": {}}):
        assert not is_plain(document(plain, {**plain, **more}))
    compiled = document({**plain, "graph_breaks": {}})
    assert not Results([compiled]).records
    assert len(Results([document(plain)]).records) == 1
    maps = [(8, 64, 56, 56), (8, 256, 14, 14), (4, 512, 7, 7), (2, 256, 40, 40)]
    last = [
        record(
            "coord_attention",
            shape,
            {"visgraft": timing(3, 3, 3), "visgraft, contiguous": timing(2, 2, 2)},
            step="forward and backward",
            channels_last=True,
        )
        for shape in maps[:2]
    ]
    target = next(t for t in TARGETS if t.what.startswith("channels_last"))
    assert target.reached(Results([document(*last)])) == "coord_attention 1.50 / 1.50 / - / -"
    assert target.reached(Results([])) == "not measured"


def test_profile_names_what_takes_the_time():
    a = torch.randn(300, 300)
    found = shares(lambda: torch.mm(a, a).relu(), steps=3)
    assert max(found, key=lambda name: found[name]) == "aten::mm"
    assert sum(found.values()) <= 1.01
    one = {"case": "cot", "shape": [2, 3], "ratio": 1.25, "shares": {"aten::mm": 0.5, "b": 0.125}}
    text = profile_table({"profiles": [one]})
    assert text.splitlines()[2:] == ["| cot | 2 x 3 | 1.25 | `aten::mm` 50%, `b` 12% |"]


def test_profile_on_file_is_of_what_is_profiled_now():
    profile = read_profile()
    assert profile is not None, FILE
    found = [(one["case"], tuple(one["shape"])) for one in profile["profiles"]]
    assert found == list(PROFILED)


def test_new_results_take_the_place_of_old_ones():
    first, second = (record(name, (1, 2), {"visgraft": timing(1, 2, 3)}) for name in "ab")
    newer = {**second, "timings": {"visgraft": timing(4, 5, 6)}}
    added = record("c", (1, 2), {"visgraft": timing(1, 1, 1)})
    old = document(first, second)
    done = merged(old, document(newer, added, date="2026-02-02"))
    records = done["runs"][0]["records"]
    assert records == [first, *({"date": "2026-02-02", **each} for each in (newer, added))]
    assert done["date"] == "2026-01-01"
    assert old["runs"][0]["records"] == [first, second]
    reached = {"visgraft": {"of_copy": 0.1, "of_multiply": None}}
    for each in records:
        each |= {"reached": reached, "refused": {}}
    text = page({"blocks": done}, None)
    assert "| blocks | 2026-01-01; 2 of 3 later, last 2026-02-02 |" in text
    assert "| b | 1 x 2 | forward | visgraft | 5000.00 | 5.00 | 1.0 | 0.10 | - |" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "cuda"}, r"^merge: device differs, 'cpu' and 'cuda'; measure all anew$"),
        ({"machine": {"cpu": "z", "cpu_capability": "b", "cores": 2, "torch": "2"}}, "cpu differs"),
        ({"machine": {"cpu": "a", "cpu_capability": "b", "cores": 2, "torch": "3"}}, "torch diff"),
    ],
)
def test_results_of_another_machine_are_refused(change, message):
    one = record("a", (1,), {})
    with pytest.raises(ValueError, match=message):
        merged(document(one), document(one, **change))
    half = document({**one, "dtype": "bfloat16"})
    with pytest.raises(ValueError, match="dtype differs"):
        merged(document(one), half)
    half["runs"][0]["allocator"] = "default"
    with pytest.raises(ValueError, match="allocator differs"):
        merged(document(one), half)
