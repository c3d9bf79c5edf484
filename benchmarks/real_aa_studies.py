"""How often real studies without any difference are called "better" or "worse".

Identical networks with equal seeds end with equal numbers to the last bit, so a study of a network
against itself has nothing but zeros to judge. What is left to chance is the seed. Here a pool of
short real trials is trained, two networks with many seeds each, and studies are formed in which
baseline and variants are one network with different seeds: no variant differs from the baseline,
all differences are real luck of initial weights, data order and augmentation.

    python benchmarks/real_aa_studies.py train --folder runs/pool --seeds 100
    python benchmarks/real_aa_studies.py count --folder runs/pool --json aa.json

Disjoint studies share no trial; their interval is the exact binomial one (Clopper-Pearson).
Resampled studies draw the whole pool anew many times over; since they share trials, their interval
comes from halves of the pool (the delete-half jackknife) and not from their number.
"""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from scipy import stats

from visgraft.study import Store, load_study, run_study
from visgraft.study.statistics import Verdict, compare, detectable_difference

METRIC = "top1"
LEVEL = 0.05
DEALS_OF_HALVES = 8
FIELDS: dict[str, Any] = {
    "name": "A pool of real trials",
    "recipe": {
        "data": "fashion_mini",
        "model": "resnet10_small",
        "model_args": {"channels": [8, 16, 32, 64], "zero_init_last": False},
        "train_limit": 500,
        "val_limit": 1000,
        "epochs": 3,
        "batch_size": 20,
        "lr": 3.0e-3,
        "warmup_epochs": 0.2,
        "channels_last": True,
        "loggers": "none",
        "device": "cpu",
    },
    "variants": {"global_context": {"block": "global_context", "at": "stage4/block_end"}},
}

Pools = list[np.ndarray]
Study = tuple[np.ndarray, np.ndarray]
"""Numbers of the baseline (seeds,) and of the variants (variants, seeds)."""


def pools_of(folder: Path) -> tuple[Pools, np.ndarray]:
    """Returns the results of each network, and those of both networks by seed (seeds, 2)."""
    store = Store.open(folder)
    final = store.final(METRIC)
    names = (store.study.baseline, *store.study.variants)
    pools = [np.array([v for (name, _), v in final.items() if name == own]) for own in names]
    paired = [
        [final[name, seed] for name in names]
        for seed in store.study.seeds
        if all((name, seed) in final for name in names)
    ]
    return pools, np.array(paired)


def studies(pools: Pools, seeds: int, variants: int, rng: Generator) -> Iterator[Study]:
    """Deals each pool out into as many studies as it has trials for; none gets a trial twice."""
    for pool in pools:
        size = seeds * (1 + variants)
        dealt = rng.permutation(pool)[: len(pool) // size * size].reshape(-1, 1 + variants, seeds)
        for numbers in dealt:
            yield numbers[0], numbers[1:]


def verdicts(study: Study) -> list[Verdict]:
    """Returns what the library says of the variants of a study."""
    baseline, others = study
    names = [f"variant {i}" for i in range(len(others))]
    values = {("baseline", seed): float(value) for seed, value in enumerate(baseline)}
    for name, numbers in zip(names, others, strict=True):
        values |= {(name, seed): float(value) for seed, value in enumerate(numbers)}
    found = compare(names, "baseline", range(len(baseline)), values)
    return [comparison.verdict for comparison in found]


def is_false(study: Study) -> bool:
    """Tells whether any variant was called better or worse."""
    return any(verdict in (Verdict.BETTER, Verdict.WORSE) for verdict in verdicts(study))


def is_found(study: Study, effect: float) -> bool:
    """Tells whether the first variant, moved by so much, is called better."""
    baseline, others = study
    moved = others.copy()
    moved[0] += effect
    return verdicts((baseline, moved))[0] is Verdict.BETTER


def share(found: Sequence[bool]) -> float:
    """Returns a share in percent, NaN of nothing."""
    return 100 * sum(found) / len(found) if found else math.nan


def exact_interval(found: Sequence[bool]) -> tuple[float, float]:
    """Returns the exact 95 % binomial interval of a share, in percent."""
    if not found:
        return math.nan, math.nan
    interval = stats.binomtest(sum(found), len(found)).proportion_ci(0.95)
    return 100 * interval.low, 100 * interval.high


def around(value: float, error: float) -> tuple[float, float]:
    """Returns a 95 % interval within 0 to 100."""
    return max(0.0, value - 1.96 * error), min(100.0, value + 1.96 * error)


def cell(
    pools: Pools, seeds: int, variants: int, *, deals: int, halves: int, rng: Generator
) -> dict[str, Any]:
    """Returns the figures of all studies of one size.

    Args:
        pools: Results of each network.
        seeds: Of a study.
        variants: Of a study.
        deals: How often the pool is dealt out for the resampled studies.
        halves: Random halves of the pool that the interval of those comes from.
        rng: For the drawing.
    """
    spread = math.sqrt(2 * np.mean([pool.var(ddof=1) for pool in pools]))
    effect = detectable_difference(spread, seeds, level=LEVEL / variants)
    disjoint = list(studies(pools, seeds, variants, rng))
    false = [is_false(study) for study in disjoint]
    found = [is_found(study, effect) for study in disjoint]
    many = [study for _ in range(deals) for study in studies(pools, seeds, variants, rng)]
    false_of_many = [is_false(study) for study in many]
    found_of_many = [is_found(study, effect) for study in many]
    of_halves = []
    for _ in range(halves):
        half = [rng.permutation(pool)[: len(pool) // 2] for pool in pools]
        dealt = [s for _ in range(DEALS_OF_HALVES) for s in studies(half, seeds, variants, rng)]
        of_halves.append(
            (share([is_false(s) for s in dealt]), share([is_found(s, effect) for s in dealt]))
        )
    # Around the whole, halves scatter as wholes would around the truth.
    whole = (share(false_of_many), share(found_of_many))
    errors = np.sqrt(np.mean((np.array(of_halves) - whole) ** 2, axis=0))
    return {
        "seeds": seeds,
        "variants": variants,
        "disjoint": len(disjoint),
        "false": share(false),
        "false interval": exact_interval(false),
        "planted effect": effect,
        "found": share(found),
        "found interval": exact_interval(found),
        "resampled": len(many),
        "false of resampled": whole[0],
        "false of resampled interval": around(whole[0], errors[0]),
        "found of resampled": whole[1],
        "found of resampled interval": around(whole[1], errors[1]),
    }


def describe(differences: np.ndarray) -> dict[str, float]:
    """Returns mean, spread and shape of differences; 0 and 0 would be the shape of a normal one."""
    return {
        "n": len(differences),
        "mean": float(differences.mean()),
        "sd": float(differences.std(ddof=1)),
        "skewness": float(stats.skew(differences, bias=False)),
        "excess kurtosis": float(stats.kurtosis(differences, bias=False)),
    }


def _train(args: argparse.Namespace) -> None:
    run_study(
        load_study(FIELDS | {"seeds": args.seeds}),
        args.folder,
        workers=args.workers,
        threads=1,
        measure=False,
    )


def _count(args: argparse.Namespace) -> None:
    rng = np.random.default_rng(args.luck)
    pools, paired = pools_of(args.folder)
    shapes = {}
    for pool, name in zip(pools, ("baseline", "global_context"), strict=True):
        half = len(pool) // 2
        shuffled = rng.permutation(pool)
        shapes[f"A/A, {name}"] = describe(shuffled[:half] - shuffled[half : 2 * half])
    shapes["global_context minus baseline, same seed"] = describe(paired[:, 1] - paired[:, 0])
    correlation = float(np.corrcoef(paired.T)[0, 1])
    cells = [
        cell(pools, seeds, variants, deals=args.deals, halves=args.halves, rng=rng)
        for seeds in args.sizes
        for variants in args.variants
    ]
    print(f"{sum(map(len, pools))} trials; means {[round(float(p.mean()), 2) for p in pools]}")
    print(
        "\n| Differences | n | mean | sd | skewness | excess kurtosis |\n|---|--:|--:|--:|--:|--:|"
    )
    for name, shape in shapes.items():
        numbers = " | ".join(f"{shape[key]:.2f}" for key in list(shape)[1:])
        print(f"| {name} | {shape['n']} | {numbers} |")
    print(f"\ncorrelation of the two networks over the seeds: {correlation:.2f}\n")
    print(
        "| Seeds | Variants | Disjoint studies | false (%) | found (%) |"
        " Resampled | false (%) | found (%) |\n" + "|--:" * 8 + "|"
    )
    for row in cells:
        shown = [
            f"{row[key]:.1f} [{row[f'{key} interval'][0]:.1f}, {row[f'{key} interval'][1]:.1f}]"
            for key in ("false", "found", "false of resampled", "found of resampled")
        ]
        print(
            f"| {row['seeds']} | {row['variants']} | {row['disjoint']} | {shown[0]} | {shown[1]} |"
            f" {row['resampled']} | {shown[2]} | {shown[3]} |"
        )
    if args.json:
        found = {"shapes": shapes, "correlation": correlation, "studies": cells}
        args.json.write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    """Trains the pool, or prints Markdown tables of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    actions = parser.add_subparsers(required=True)
    train = actions.add_parser("train")
    train.add_argument("--seeds", type=int, default=100)
    train.add_argument("--workers", type=int, default=1)
    train.set_defaults(run=_train)
    count = actions.add_parser("count")
    count.add_argument("--sizes", type=int, nargs="+", default=[3, 5], help="seeds per study")
    count.add_argument("--variants", type=int, nargs="+", default=[1, 3])
    count.add_argument("--deals", type=int, default=60)
    count.add_argument("--halves", type=int, default=30)
    count.add_argument("--luck", type=int, default=0, help="seed of the drawing")
    count.add_argument("--json", type=Path, help="write the figures there, too")
    count.set_defaults(run=_count)
    for action in (train, count):
        action.add_argument("--folder", type=Path, default=Path("runs/pool"))
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
