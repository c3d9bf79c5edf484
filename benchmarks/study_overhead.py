"""What a study costs on top of the training in it: its time against that of the bare runs.

The same trials are trained twice, by `visgraft.tasks.train` one after the other in one process, and
as a study with one worker. Both are measured from outside: all processor time of the process and
its children, imports included, and the time on the wall. The first says more on a busy machine.

    python benchmarks/study_overhead.py --seeds 3 --epochs 10
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BARE = """
import json, sys
from visgraft.study import load_study, trials
from visgraft.tasks import train
for spec in trials(load_study(json.loads(sys.argv[1]))):
    folder = f"{sys.argv[2]}/{spec.variant}-{spec.seed}"
    train(spec.recipe, folder, progress=False, keep="last")
"""
STUDY = """
import json, sys
from visgraft.study import load_study, run_study
plan = load_study(json.loads(sys.argv[1]))
run_study(plan, sys.argv[2], workers=1, threads=1, progress=False, measure=False)
"""
IDLE = """
import visgraft.study.execution, visgraft.tasks.training
"""
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}


def plan(seeds: int, epochs: int, images: int) -> dict[str, Any]:
    """Returns the fields of a study of two networks."""
    return {
        "recipe": {
            "data": "fashion_mini",
            "model": "resnet10_small",
            "train_limit": images,
            "val_limit": 500,
            "epochs": epochs,
            "loggers": "none",
            "device": "cpu",
        },
        "variants": {"ca": {"block": "coord_attention", "at": "block_end"}},
        "seeds": seeds,
    }


def measure(code: str, fields: dict[str, Any]) -> tuple[float, float]:
    """Runs a program and returns its processor seconds and its seconds on the wall."""
    with tempfile.TemporaryDirectory() as folder:
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        command = [sys.executable, "-c", code, json.dumps(fields), folder]
        subprocess.run(command, check=True, env=os.environ | _ONE_THREAD)
        wall = time.monotonic() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return used, wall


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    args = parser.parse_args()
    fields = plan(args.seeds, args.epochs, args.images)
    count = 2 * args.seeds
    found = {
        name: measure(code, fields)
        for name, code in (("imports alone", IDLE), ("bare", BARE), ("study", STUDY))
    }
    print(f"{count} trials\n\n| | CPU seconds | seconds |\n|---|--:|--:|")
    for name, (used, wall) in found.items():
        print(f"| {name} | {used:.1f} | {wall:.1f} |")
    (idle, _), (bare, bare_wall), (study, wall) = found.values()
    print(f"\nstudy / bare: {study / bare:.3f} CPU, {wall / bare_wall:.3f} on the wall")
    rest = study - bare - idle
    print(f"more CPU seconds: {study - bare:.1f}, of these {idle:.1f} for the second process")
    print(f"and {rest / count:.2f} per trial (of {bare / count:.1f})")
    if args.json:
        args.json.write_text(json.dumps({"trials": count, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
