"""A worker process: claims trials of a study and trains them, one after the other.

Started as ``python -m visgraft.study.worker FOLDER --threads N`` by
:class:`visgraft.study.local.LocalExecutor`; never by hand.
"""

import argparse
import logging
import threading
from collections.abc import Sequence

import torch

from visgraft.study.child_process import end_with_the_driver
from visgraft.study.claims import claim_next
from visgraft.study.store import Store
from visgraft.study.trial import work_on

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Works until no trial waits, or until the process that started this one is gone."""
    parser = argparse.ArgumentParser(prog="visgraft.study.worker")
    parser.add_argument("folder")
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args(arguments)
    threading.Thread(target=end_with_the_driver, daemon=True).start()
    logging.basicConfig(format="%(asctime)s %(message)s")  # to the trial's log
    logging.getLogger("visgraft").setLevel(logging.INFO)
    torch.set_num_threads(options.threads)
    store = Store.open(options.folder)
    while claim := claim_next(store):
        work_on(claim, log=True)


if __name__ == "__main__":
    main()
