"""Repeats the mutation check of some blocks, or of all: ``python -m tests.mutation BLOCK ...``."""

import argparse
import time

from tests.mutation.driver import caught_by
from tests.mutation.edits import EDITS
from tests.mutation.results import read, write


def main() -> None:
    """Makes the wrong edits one by one and records, for each, the first test that fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=main.__doc__)
    parser.add_argument("blocks", nargs="*", metavar="BLOCK", help="all if none is named")
    parser.add_argument("--edit", help="only the edits whose description contains this")
    parser.add_argument("--missing", action="store_true", help="only the edits without a record")
    parser.add_argument("--trust", action="store_true", help="do not first test without an edit")
    options = parser.parse_args()
    unknown = set(options.blocks) - set(EDITS)
    if unknown:
        parser.error(f"no edits of {', '.join(sorted(unknown))}; there are {', '.join(EDITS)}")
    for block in options.blocks or EDITS:
        if not options.trust and (found := caught_by(block, None)) is not None:
            parser.error(f"{block} fails without an edit: {found[1]}")
        for edit in EDITS[block]:
            recorded = read()
            known = edit.name in recorded.get(block, {})
            if (options.edit and options.edit not in edit.name) or (options.missing and known):
                continue
            start = time.monotonic()
            stage, test = caught_by(block, edit) or (None, None)
            recorded.setdefault(block, {})[edit.name] = {"stage": stage, "test": test}
            write(recorded)
            seconds = time.monotonic() - start
            print(f"{block}: {edit.name}: {stage}: {test} ({seconds:.0f} s)", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
