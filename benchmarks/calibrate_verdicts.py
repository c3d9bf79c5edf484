"""How often the verdict of a study is wrong, and how often it finds what is there, by simulation.

A/A studies: no variant differs from the baseline, and a single "better" or "worse" makes the study
a false one. Noise is normal, or has heavy tails (Student's t with 3 degrees of freedom), or is
skewed (exponential). Planted effects: one variant is better by the difference that the study says
it would have seen with 80 % power; the others are not.

    python benchmarks/calibrate_verdicts.py --studies 4000 --seeds 3 5 10

Standard errors stand behind the figures.
"""

import argparse
import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.random import Generator

from visgraft.study import statistics
from visgraft.study.statistics import (
    Comparison,
    Verdict,
    compare,
    detectable_difference,
)

SPREAD = 0.3
"""Standard deviation of the paired differences, in points."""

Noise = Callable[[Generator, tuple[int, int]], np.ndarray]
NOISES: dict[str, Noise] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "heavy tails": lambda rng, shape: rng.standard_t(3, shape) / math.sqrt(3),
    "skewed": lambda rng, shape: rng.exponential(1.0, shape) - 1,
}


def simulate(
    studies: int, seeds: int, effects: list[float], noise: Noise, rng: Generator
) -> Iterator[list[Comparison]]:
    """Yields the comparisons of made-up studies whose variants have these true effects."""
    names = ["baseline", *(f"variant {i}" for i in range(len(effects)))]
    true = np.array([0.0, *effects])
    for _ in range(studies):
        of_seed = rng.normal(90, 0.5, (seeds, 1))  # a good seed lifts all networks
        top1 = of_seed + true + noise(rng, (seeds, len(names))) * SPREAD / math.sqrt(2)
        values = {
            (name, seed): float(top1[seed, i])
            for i, name in enumerate(names)
            for seed in range(seeds)
        }
        yield compare(names[1:], names[0], range(seeds), values)


def false_share(studies: int, seeds: int, variants: int, noise: Noise, rng: Generator) -> float:
    """Returns the share of A/A studies with a false verdict."""
    found = simulate(studies, seeds, [0.0] * variants, noise, rng)
    return sum(any(map(is_decided, study)) for study in found) / studies


def found_share(studies: int, seeds: int, variants: int, rng: Generator) -> float:
    """Returns how often a variant is called better that is so by the detectable difference."""
    effect = detectable_difference(SPREAD, seeds, level=0.05 / variants)
    effects = [effect, *[0.0] * (variants - 1)]
    found = simulate(studies, seeds, effects, NOISES["normal"], rng)
    return sum(study[0].verdict is Verdict.BETTER for study in found) / studies


def is_decided(comparison: Comparison) -> bool:
    """Tells whether the verdict is "better" or "worse"."""
    return comparison.verdict in (Verdict.BETTER, Verdict.WORSE)


def percent(share: float, studies: int) -> str:
    """Returns a share with its standard error."""
    error = math.sqrt(max(share * (1 - share), 1 / studies) / studies)
    return f"{100 * share:.1f} ± {100 * error:.1f}"


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=1000, help="per cell of the table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 5, 10, 20])
    parser.add_argument("--variants", type=int, nargs="+", default=[1, 3, 5])
    args = parser.parse_args()
    # It decides nothing where there is a t-test, and takes long: a million patterns at 20 seeds.
    statistics.sign_flip_p = lambda _: math.nan
    kinds = " | ".join(f"false, {name} (%)" for name in NOISES)
    print(f"| Seeds | Variants | Studies | {kinds} | planted effect found (%) |")
    print("|--:" * (4 + len(NOISES)) + "|")
    for seeds in args.seeds:
        for variants in args.variants:
            rng = np.random.default_rng([seeds, variants])
            cells = [
                percent(false_share(args.studies, seeds, variants, noise, rng), args.studies)
                for noise in NOISES.values()
            ]
            cells.append(percent(found_share(args.studies, seeds, variants, rng), args.studies))
            print(f"| {seeds} | {variants} | {args.studies} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
