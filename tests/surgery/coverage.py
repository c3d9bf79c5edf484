"""Grafts every architecture of timm and writes what happened to `docs/graft_coverage.md`.

`python -m tests.surgery.coverage` examines the smallest network of each model class, module and
leading word of the name, which takes an hour on one core; names of networks examine these alone
and keep the other rows of the table.
"""

import gc
import re
import sys
import time
from collections import Counter, defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import timm
import torch
from timm.models import build_model_with_cfg, get_pretrained_cfg, model_entrypoint
from torch import nn
from torch.utils._pytree import tree_leaves

from tests.surgery.models import alive
from visgraft.surgery import find_sites, graft

PAGE = Path(__file__).parents[2] / "docs" / "graft_coverage.md"
ORDERS = {
    "coord_attention at block_end": ("coord_attention", "block_end", None),
    "cot parallel at conv3x3": ("cot", "conv3x3", "parallel"),
    "deform_conv at conv3x3": ("deform_conv", "conv3x3", None),
}
TRANSPLANTED = {"deform_conv"}  # differs as sums are rounded, the others not at all
TOLERANCE = 1e-4  # of the largest output
SIZES = (64, 128, 192, 224)  # pixels, tried in this order


@dataclass(frozen=True)
class Row:
    """One network: what it is, and one text per order."""

    name: str
    module: str
    cls: str
    size: str
    convs: str
    cells: tuple[str, ...]
    reasons: tuple[str, ...] = ()


class _ClassFound(BaseException):
    pass


def architectures():
    """Returns the names of timm's networks by module and class; hardly any is built."""
    wanted = ""

    def stop(model_cls, variant, *args, **kwargs):
        if variant == wanted:
            raise _ClassFound(model_cls)
        return build_model_with_cfg(model_cls, variant, *args, **kwargs)  # a trunk of another

    found = defaultdict(list)
    with ExitStack() as stack:
        stack.enter_context(torch.device("meta"))
        for name, module in list(sys.modules.items()):
            if name.startswith("timm.models.") and hasattr(module, "build_model_with_cfg"):
                stack.enter_context(patch.object(module, "build_model_with_cfg", stop))
        for wanted in timm.list_models(exclude_filters="test_*"):
            entry = model_entrypoint(wanted)
            if not entry.__module__.startswith("timm."):
                continue  # of another package
            try:
                made = type(entry(pretrained=False))
            except _ClassFound as stopped:
                (made,) = stopped.args
            found[entry.__module__.removeprefix("timm.models."), made.__name__].append(wanted)
    return dict(found)


def chosen():
    """Returns the smallest network of each class, module and leading word of the name."""
    names = []
    for group in architectures().values():
        families = defaultdict(list)
        for name in group:
            families[re.match(r"[a-z]+", name)[0]].append(name)
        names += [min(family, key=parameters) for family in families.values()]
    return names


def parameters(name):
    with torch.device("meta"):
        return sum(p.numel() for p in timm.create_model(name).parameters())


def example_of(name):
    """Returns what builds a network for, and the shape of, the smallest square images it takes.

    Also returns the network without values, and its sites.
    """
    config = get_pretrained_cfg(name)
    own = config.input_size[1]
    for size in (*(s for s in SIZES if s < own), own):
        options = {"img_size": size} if config.fixed_input_size and size != own else {}
        shape = (2, config.input_size[0], size, size)
        try:
            with torch.device("meta"):
                model = timm.create_model(name, **options)
                return options, shape, model, find_sites(model, shape)
        except Exception:
            if size == own:
                raise
    raise AssertionError


def examine(name):
    """Grafts one network in all ways and returns its row."""
    module = model_entrypoint(name).__module__.removeprefix("timm.models.")
    options, shape, model, sites = example_of(name)
    if {"conv3x3", "block_end"}.isdisjoint(site.kind for site in sites):
        outcomes = [refusal(model, shape, *order) for order in ORDERS.values()]
    else:
        torch.manual_seed(0)
        model, x = alive(timm.create_model(name, **options)), torch.randn(shape)
        before = outputs(model, x)
        if not all(t.isfinite().all() for t in before):
            raise RuntimeError(f"{name}: the outputs are not finite")
        outcomes = [outcome(model, x, before, *order) for order in ORDERS.values()]
    convs = sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in model.modules())
    cells, reasons = zip(*outcomes, strict=True)
    return Row(name, module, type(model).__name__, str(shape[-1]), str(convs), cells, reasons)


def refusal(model, shape, block, at, how):
    """Returns what the table says of a network that has no such sites."""
    try:
        graft(model, block, at, how=how, strict=False, example=shape)
    except ValueError as error:
        return "refused", generic(str(error))
    return "failed", "was grafted without having sites"


def outcome(model, x, before, block, at, how):
    """Returns what the table says of one graft, and the reasons for what was left out."""
    state = {n: t.clone() for n, t in model.state_dict().items()}
    try:
        done = graft(model, block, at, how=how, strict=False, example=x)
    except ValueError as error:
        unchanged = same(before, outputs(model, x)) and same_state(model, state)
        return ("refused" if unchanged else "failed"), generic(str(error))
    after = outputs(model, x)
    difference = max(distance(a, b) for a, b in zip(after, before, strict=True))
    faults, precise = [], ""
    if block in TRANSPLANTED and difference > TOLERANCE:
        in_double = difference_in_double(model, x, done)
        precise = f", {in_double:.0e} in float64"
        if not in_double <= TOLERANCE**2:
            faults.append(f"differs by {difference:.1e} of the largest output{precise}")
    elif block not in TRANSPLANTED and difference != 0:
        faults.append(f"differs by {difference:.1e} of the largest output")
    with torch.no_grad():
        for parameter in done.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    if same(outputs(model, x), after):
        faults.append("has no effect")
    done.undo()
    if not (same(outputs(model, x), before) and same_state(model, state)):
        faults.append("is not undone")
    if faults:
        return "failed", "; ".join(faults)
    reasons = {generic(reason) for _, reason in done.skipped}
    number = f"{len(done.sites)} of {len(done.sites) + len(done.skipped)}"
    size = f"{difference:.0e}" if difference else "0"
    beside = sum(row.how == "parallel" for row in done.rows) if block in TRANSPLANTED else 0
    cell = f"{number}, {size}{precise}" + (f", {beside} beside" if beside else "")
    return cell, "; ".join(sorted(reasons))


def difference_in_double(model, x, done):
    """Returns the difference without most of the rounding, which deep networks amplify."""
    model.double()
    after = outputs(model, x.double())
    with done.disabled():
        before = outputs(model, x.double())
    model.float()
    return max(distance(a, b) for a, b in zip(after, before, strict=True))


def outputs(model, x):
    """Returns all that the model computes."""
    with torch.no_grad():
        return [t for t in tree_leaves(model(x)) if isinstance(t, torch.Tensor)]


def distance(a, b):
    """Returns the largest difference as a part of the largest value."""
    if not a.numel() or torch.equal(a, b):
        return 0.0
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


def same(a, b):
    return all(torch.equal(one, other) for one, other in zip(a, b, strict=True))


def same_state(model, state):
    now = model.state_dict()
    return list(now) == list(state) and all(torch.equal(now[n], t) for n, t in state.items())


def generic(reason):
    """Returns a reason without what is of one site or model alone."""
    text = reason.removeprefix("graft: ").split("; sites of this model")[0]
    misfits = re.match(r"\w+ does not fit at \d+ of \d+ sites: (.*)", text)
    if misfits:
        found = (part.partition(" (")[2].removesuffix(")") for part in misfits[1].split("); "))
        return "; ".join(sorted({generic(one) for one in found}))
    text = re.sub(r"\(\d+(, \d+)+\)", "(...)", text)
    return re.sub(r"\b\d+\b", "n", text)


def write(rows):
    """Writes the page: counts, one line per network, and the reasons."""
    letters = {}
    lines = []
    for row in sorted(rows, key=lambda r: (r.module, r.cls, r.name)):
        cells = []
        for cell, reason in zip(row.cells, row.reasons, strict=True):
            mark = letters.setdefault(reason, len(letters) + 1) if reason else ""
            cells.append(f"{cell} [{mark}]" if mark else cell)
        facts = (row.name, row.cls, row.module, row.size, row.convs, *cells)
        lines.append(f"| {' | '.join(facts)} |")
    head = ["network", "class", "module", "pixels", "3 x 3", *ORDERS]
    text = INTRODUCTION.format(
        networks=len(rows),
        classes=len({(row.module, row.cls) for row in rows}),
        timm=timm.__version__,
        torch=torch.__version__.split("+")[0],
        counts="\n".join(counts(rows)),
        table="\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines]),
        reasons="\n".join(f"{number}. {reason}" for reason, number in letters.items()),
    )
    PAGE.write_text(text)


def counts(rows):
    """Returns one line per order: how many networks it went into, and why not into the others."""
    with_convs = [row for row in rows if row.convs != "0"]
    for i, order in enumerate(ORDERS):
        states = Counter(state(row.cells[i]) for row in rows)
        lacking = [r for r in with_convs if "matches nothing" in r.reasons[i]]
        done = sum(state(row.cells[i]) == "grafted" for row in with_convs)
        yield (
            f"| {order} | {states['grafted']} | {states['refused']} | {states['failed']} | "
            f"{done} of {len(with_convs)} | {done} of {len(with_convs) - len(lacking)} |"
        )


def state(cell):
    """Returns the word for a cell of the table."""
    return cell if cell in ("refused", "failed") else "grafted"


def read():
    """Returns the rows of the page."""
    text = PAGE.read_text()
    reasons = dict(re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE))
    found = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.strip("|").split("|")]
        if len(parts) != 5 + len(ORDERS) or parts[0] == "network" or parts[0].startswith("---"):
            continue
        pairs = [re.fullmatch(r"(.*?)(?: \[(\d+)\])?", cell).groups() for cell in parts[5:]]
        cells, marks = zip(*pairs, strict=True)
        texts = tuple(reasons[mark] if mark else "" for mark in marks)
        name, cls, module, *facts = parts[:5]
        found.append(Row(name, module, cls, *facts, cells, texts))
    return found


def main():
    rows = {row.name: row for row in read()} if sys.argv[1:] else {}
    for name in sys.argv[1:] or chosen():
        started = time.perf_counter()
        rows[name] = examine(name)
        print(name, rows[name].cells, f"{time.perf_counter() - started:.0f} s")  # noqa: T201
        gc.collect()
        if sys.argv[1:]:
            write(rows.values())
    write(rows.values())


INTRODUCTION = """# Grafting every architecture of timm

{networks} networks of timm {timm} with torch {torch}: of each model class in each module ({classes}
of them), and there of each first word of a name, the smallest. All were given random weights, so
that no branch is worth zero, and two random images of the smallest of 64, 128, 192 and 224 pixels
that they take, or of their own size. Each was grafted in three ways, with `strict=False`, and every
graft was taken out again:

* `coord_attention` at `block_end`: must change no output, to the last bit;
* `cot` with `how="parallel"` at `conv3x3`: likewise;
* `deform_conv` at `conv3x3`: takes over the convolution's weights, and must change no output by
  more than 1e-4 of the largest one, or in float64, where a deep network amplifies rounding, by no
  more than 1e-8. Where it cannot hold the convolution it goes beside it.

"Grafted" means that this held, that changing the new weights changed the outputs, and that `undo`
gave back the outputs and all tensors, bit for bit. "Refused" means an error in one sentence that
changed nothing.

| | grafted | refused | failed | of those with 3 x 3 convolutions | of those with such sites too |
|---|---|---|---|---|---|
{counts}

In the table, `12 of 16, 0 [3]` says that 12 of 16 sites were grafted, that the largest difference
at the start was 0, and that the others were left out for reason 3 below.
`python -m tests.surgery.coverage` makes this page.

{table}

## Reasons

{reasons}
"""

if __name__ == "__main__":
    main()
