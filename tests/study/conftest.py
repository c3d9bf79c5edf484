import pytest

from visgraft.study.measuring import networks as measuring


@pytest.fixture(autouse=True, scope="session")
def _few_rounds():
    """Measuring what networks cost takes no time where it is not what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "LEAST_ROUNDS", 2)
        patch.setattr(measuring, "MOST_ROUNDS", 4)
        yield
