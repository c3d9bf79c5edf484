"""Terminal summary of the golden cases; hooked into tests/conftest.py.

A golden test is one whose function is called ``test_golden``; its id is the name of the case.
"""

import re
from collections import Counter
from typing import Any

__all__ = ["golden_counts", "pytest_terminal_summary"]


def golden_counts(node_ids: list[str]) -> Counter[str]:
    """Counts golden tests by family, such as ``cot-official``."""
    names = (re.search(r"::test_golden\[(.+)\]$", node_id) for node_id in node_ids)
    return Counter(name[1].rpartition("-")[0] for name in names if name)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints how many golden cases of each family passed."""
    ids = {
        outcome: [r.nodeid for r in terminalreporter.stats.get(outcome, []) if hasattr(r, "nodeid")]
        for outcome in ("passed", "failed", "error")
    }
    passed = golden_counts(ids["passed"])
    ran = passed + golden_counts(ids["failed"]) + golden_counts(ids["error"])
    if not ran:
        return
    terminalreporter.write_sep("=", "golden cases passed")
    for family, count in sorted(ran.items()):
        terminalreporter.write_line(f"{family:<20} {passed[family]:>3} of {count}")
    terminalreporter.write_line(f"{'all':<20} {passed.total():>3} of {ran.total()}")
