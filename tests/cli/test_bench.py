"""The command measures in a process of its own, and prints, writes and draws what it found."""

import pytest

from visgraft.cli.main import main
from visgraft.inspect import bench
from visgraft.inspect.bench import read_document


def test_command_measures_in_a_child(tmp_path, capfd):
    out, plot = tmp_path / "r.json", tmp_path / "r.png"
    words = ["bench", "ops", "--quick", "--only", "space_to_depth", "--out", str(out)]
    assert main([*words, "--plot", str(plot)]) == 0
    assert "space_to_depth 1 x 32 x 10 x 10" in capfd.readouterr().err
    found = read_document(out)
    assert (found["quick"], found["runs"][0]["allocator"]) == (True, "tuned")
    assert "mmap_threshold" in found["runs"][0]["environment"]["GLIBC_TUNABLES"]
    assert plot.stat().st_size > 1000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.json", "r.png"]


def test_what_was_measured_before_a_failure_is_kept(tmp_path, monkeypatch, capsys):
    def stopped(makers, settings, *, keep, **_):
        keep({"format": 1, "runs": []})
        raise RuntimeError("bench: stopped")

    monkeypatch.setattr(bench, "measure_cases", stopped)
    out = tmp_path / "r.json"
    assert main(["bench", "ops", "--allocator", "as-is", "--out", str(out)]) != 0
    assert [p.name for p in tmp_path.iterdir()] == ["r.unfinished.json"]
    assert read_document(tmp_path / "r.unfinished.json") == {"format": 1, "runs": []}

    def stopped_child(*_, keep, **__):
        keep({"format": 1, "runs": [{}]})
        raise RuntimeError("bench: stopped")

    monkeypatch.setattr(bench, "measure_in_children", stopped_child)
    assert main(["bench", "ops", "--out", str(out)]) != 0
    assert f"bench: what was measured is in {tmp_path}/r.unfinished.json" in capsys.readouterr().err
    assert read_document(tmp_path / "r.unfinished.json")["runs"] == [{}]


def test_command_prints_a_table(capsys):
    words = ["bench", "ops", "--quick", "--only", "space_to_depth", "--allocator", "as-is"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "space_to_depth, 1 x 32 x 10 x 10, forward and backward" in printed
    assert [line.split()[0] for line in printed.splitlines() if "1.000" in line] == [
        "circulating",
        "circulating",
    ]
    assert main([*words[:4], "nothing", *words[5:]]) == 2
    assert "bench: no case is called 'nothing'; there are local_agg" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "{0}"], "is a folder; name a file"),
        (["--plot", "{0}/r.txt"], "is not the name of a picture"),
        (["--plot", "{0}/file/r.svg"], "is not a folder"),
        (["--out", "{0}/r.svg", "--plot", "{0}/r.svg"], "--out and --plot both name"),
    ],
)
def test_command_refuses_files_before_it_measures(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "measure_in_children", lambda *_, **__: pytest.fail("measured"))
    (tmp_path / "file").touch()
    assert main(["bench", "ops", *(word.format(tmp_path) for word in words)]) == 2
    assert message in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
