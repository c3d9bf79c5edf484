import pytest

from visgraft.cli.main import main
from visgraft.study.cluster.wishes import check_wishes
from visgraft.study.errors import StudyError
from visgraft.study.placement import placing


@pytest.mark.parametrize(
    ("executor", "workers", "wishes", "text"),
    [
        ("slurm", None, {}, "executor must be local or ray, got 'slurm'"),
        ("local", None, {"gpus": 1}, "gpus is for executor ray"),
        ("ray", 0, {}, "workers 0 runs trials in this process"),
    ],
)
def test_wishes_that_do_not_fit(executor, workers, wishes, text):
    with pytest.raises(StudyError, match=text):
        check_wishes(executor, workers, **wishes)
    check_wishes("ray", 1, gpus=1)
    check_wishes("local", 0, gpus=None)


def test_placement_hands_the_wishes_of_its_command_line_on(monkeypatch, tmp_path, capsys):
    def run_study(study, folder, **how):
        asked.append((folder, how))
        raise StudyError("enough")

    asked = []
    monkeypatch.setattr(placing, "run_study", run_study)
    command = ["study", "place", "coord_attention", "--data", "fashion_mini", "--seeds", "2"]
    command += ["--at", "block_end", "--at", "layer2.*", "--folder", str(tmp_path / "place")]
    ray = ["--executor", "ray", "--address", "h:1", "--gpus", "1", "--storage", "s3://b/x"]
    assert main([*command, *ray]) == 2
    ((folder, how),) = asked
    assert "enough" in capsys.readouterr().err
    wanted = {"executor": "ray", "address": "h:1", "gpus": 1, "storage": f"s3://b/x/{folder.name}"}
    assert how.items() >= wanted.items()
