import pytest

from visgraft.study.cluster.wishes import check_wishes
from visgraft.study.errors import StudyError


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
