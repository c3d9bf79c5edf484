"""The page about speed runs as printed, and the page of results says what the results say."""

from pathlib import Path

from benchmarks.performance_targets import TARGETS, Results
from benchmarks.write_performance import PAGE, RESULTS, page, read_profile

from tests.test_documentation import fenced
from visgraft.inspect.bench import read_document

ROOT = Path(__file__).parents[2]


def test_examples_of_speed():
    namespace = {}
    for code in fenced(ROOT / "docs" / "speed.md", "python"):
        exec(code, namespace)
    assert len(namespace["fused"].folded) == 14
    assert set(namespace["done"].timings) == {"convolution", "cot"}


def test_examples_of_export(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for code in fenced(ROOT / "docs" / "export.md", "python"):
        exec(code, {})
    printed = capsys.readouterr().out
    assert "grafted.pt2: " in printed
    assert "torch.Size([4, 1000]) {" in printed
    assert '"trained_on": "photos"' in printed


def test_examples_of_attention(capsys):
    page = ROOT / "docs" / "attention.md"
    for code in fenced(page, "python"):
        exec(code, {})
    (shown,) = fenced(page, "text")
    assert capsys.readouterr().out == shown


def test_page_is_written_from_the_results():
    documents = {file.stem: read_document(file) for file in sorted(RESULTS.glob("*.json"))}
    assert documents
    assert PAGE.read_text(encoding="utf-8") == page(documents, read_profile())
    assert not any(document["quick"] for document in documents.values())


def record(case, shape, seconds, memory=None):
    memory = memory or dict.fromkeys(seconds, 8)
    timings = {
        name: {"readings": [s, 2 * s, 3 * s], "seconds": 2 * s, "peak_memory": memory[name]}
        for name, s in seconds.items()
    }
    plain = {"dtype": "float32", "channels_last": False, "step": "forward and backward"}
    return {"case": case, "shape": list(shape), "timings": timings, **plain}


def reached(start, *records):
    document = {"device": "cpu", "runs": [{"allocator": "tuned", "records": list(records)}]}
    target = next(t for t in TARGETS if t.what.startswith(start))
    return target.reached(Results([document]))


def test_targets_are_read_as_they_are_meant():
    small, large = (8, 64, 56, 56), (8, 256, 14, 14)
    aggregation = [
        record(
            "local_aggregation",
            shape,
            {"native": 1.0, "circulating": times},
            {"native": 100, "circulating": 900},
        )
        for shape, times in ((small, 12.0), (large, 16.0))
    ]
    text = reached("CoT aggregation, native", *aggregation)
    assert text == "12.00 / 16.00 / - / - times faster, 9.00 / 9.00 / - / - times less memory"
    assert reached("CoT aggregation, native") == "not measured"
    gate = record(
        "coord_attention",
        small,
        {"visgraft": 3.0, "timm": 4.0},
        dict.fromkeys(("visgraft", "timm"), 8),
    )
    assert reached("gates", gate) == ("coord_attention: 0.75 / - / - / -, memory 1.00 / - / - / -")
    net = record(
        "cotnet50",
        (8, 3, 224, 224),
        {"cotnet50": 9.0, "resnet50": 10.0},
        {"cotnet50": 1, "resnet50": 1},
    )
    assert reached("CoTNet-50", net) == "0.90 / - / -"
    untuned = {"device": "cpu", "runs": [{"allocator": "default", "records": [net]}]}
    assert not Results([untuned]).records
