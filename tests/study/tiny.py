"""A study that takes seconds, and what must not depend on how it was run."""

from visgraft.study.plan import load_study
from visgraft.study.store import Store

__all__ = ["FIELDS", "numbers", "recipe", "study"]

FIELDS = {
    "recipe": {
        "data": "fashion_mini",
        "model": "resnet10_small",
        "model_args": {"channels": [8, 8, 8, 8]},
        "train_limit": 120,
        "val_limit": 100,
        "epochs": 2,
        "batch_size": 40,
        "loggers": "none",
        "device": "cpu",
    },
    "variants": {"ca": {"block": "coord_attention", "at": "block_end"}},
    "seeds": 2,
}
MEASURED = {"seconds"}  # differs from run to run


def study(**fields):
    return load_study(FIELDS | fields)


def recipe(**fields):
    return FIELDS["recipe"] | fields


def numbers(folder):
    store = Store.open(folder)
    trials = {
        (t.variant, t.seed): (t.status, t.params, t.macs, t.init_digest, t.order_digest)
        for t in store.trials()
    }
    curves = {
        (variant, seed, epoch): {n: v for n, v in metrics.items() if n not in MEASURED}
        for variant, seed, epoch, metrics in store.curves()
    }
    return trials, curves
