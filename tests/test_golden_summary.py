from types import SimpleNamespace

from tests.golden_summary import golden_counts, pytest_terminal_summary

PREFIX = "tests/blocks/test_golden.py::test_golden"


def test_counts_golden_tests_by_family():
    ids = [
        f"{PREFIX}[cot-official-d16k3_7x7]",
        f"{PREFIX}[cot-official-d32k3_5x9]",
        "tests/ops/test_local_aggregation.py::test_golden[localagg-official-k5]",
        "tests/blocks/test_cot.py::test_rejects_inputs[cot-official-x]",
    ]
    assert golden_counts(ids) == {"cot-official": 2, "localagg-official": 1}


def test_prints_passed_and_all():
    class Reporter:
        def __init__(self):
            self.lines = []
            self.stats = {
                "passed": [SimpleNamespace(nodeid=f"{PREFIX}[cot-official-a]")],
                "failed": [SimpleNamespace(nodeid=f"{PREFIX}[cot-official-b]")],
            }

        def write_sep(self, _, title):
            self.lines.append(title)

        def write_line(self, line):
            self.lines.append(" ".join(line.split()))

    reporter = Reporter()
    pytest_terminal_summary(reporter)
    assert reporter.lines == ["golden cases passed", "cot-official 1 of 2", "all 1 of 2"]


def test_says_nothing_without_golden_tests():
    pytest_terminal_summary(SimpleNamespace(stats={}))
