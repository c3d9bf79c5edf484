"""A small study as a report sees it, made up."""

from dataclasses import replace

from visgraft.study.reports.data import StudyData, Trial

__all__ = ["changed", "made_up"]

TOP1 = {
    "baseline": (90.0, 91.0, 92.0, 90.0),
    "up": (92.0, 93.1, 93.9, 92.0),
    "same": (90.1, 90.9, 92.0, 90.0),
}
COST = {"baseline": (1_000_000, 10_000_000), "up": (1_250_000, 11e6), "same": (1_001_000, 10e6)}


def made_up(count=12, **changes):
    """A study of two variants and four seeds, its first ``count`` trials finished."""
    plan = [(name, seed) for seed in range(4) for name in TOP1]
    trials, curves = [], []
    for index, (name, seed) in enumerate(plan):
        if index >= count:
            trials.append(Trial(name, seed, "running" if index == count else "waiting"))
            continue
        value, (params, macs) = TOP1[name][seed], COST[name]
        trials.append(
            Trial(
                name, seed, "finished", value, 2, 60.0 + seed, params, int(macs), None,
                f"weights-{seed}", f"order-{seed}",
            )
        )  # fmt: skip
        curves += [
            (name, seed, epoch, {"top1": value - 2 + epoch, "train_loss": 1 / epoch})
            for epoch in (1, 2)
        ]
    fields = {
        "name": "A study",
        "baseline": "baseline",
        "variants": {"up": "up at block_end", "same": "same at block_end"},
        "seeds": (0, 1, 2, 3),
        "trials": tuple(trials),
        "curves": curves,
        "recipe": {"model": "resnet10_small", "data": "fashion_mini", "epochs": 2},
        "environments": [{"visgraft": "0.1.0", "torch": "2.15.0+cpu", "threads": 1}],
        "fingerprint": "f1n6e2",
        "study_file": "name: A study\n",
        "folder": "runs/a study",
    }
    return StudyData(**fields | changes)


def changed(data, variant, seed, **fields):
    return replace(
        data,
        trials=tuple(
            replace(t, **fields) if (t.variant, t.seed) == (variant, seed) else t
            for t in data.trials
        ),
    )
