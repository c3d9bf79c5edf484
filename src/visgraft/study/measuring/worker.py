"""A process that measures the networks of a study and tells what they cost.

Started as ``python -m visgraft.study.measuring.worker FOLDER --threads N --networks NAME ...`` by
`visgraft.study.measuring.driver`; never by hand. Standard output has a JSON object per line:
``{"at": NAME}`` when it turns to a network, so that its death can be blamed on that one, and
``{"record": ...}`` at the end. Whatever else is printed goes to standard error.
"""

import argparse
import json
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict

import torch

from visgraft.study.child_process import end_with_the_driver
from visgraft.study.facts import open_images
from visgraft.study.measuring.networks import measure_networks
from visgraft.study.store import Store

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, or ends at once when the process that started this one is gone."""
    parser = argparse.ArgumentParser(prog="visgraft.study.measuring.worker")
    parser.add_argument("folder")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--networks", nargs="+", required=True)
    options = parser.parse_args(arguments)
    threading.Thread(target=end_with_the_driver, daemon=True).start()
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

        def tell(**fields: object) -> None:
            print(json.dumps(fields), file=answers, flush=True)

        torch.set_num_threads(options.threads)
        store = Store.open(options.folder)
        study = store.study
        record = measure_networks(
            study,
            options.networks,
            open_images(store, study.recipe),
            threads=options.threads,
            announce=lambda name: tell(at=name),
        )
        tell(record=asdict(record))


if __name__ == "__main__":
    main()
