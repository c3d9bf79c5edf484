"""A placement whose training is made up: results are written down instead of being worked out."""

from visgraft.study import execution
from visgraft.study.claims import claim_next, reopen
from visgraft.study.placement.candidates import Candidate, Candidates
from visgraft.study.placement.halving import final_seeds, plan_rungs
from visgraft.study.placement.network import NetworkBlock, NetworkMap
from visgraft.study.placement.plan import PlacementPlan
from visgraft.study.store import Store
from visgraft.tasks.graft_spec import GraftSpec
from visgraft.tasks.recipe import load_recipe

__all__ = ["WORTH", "made_up_plan", "trained"]

WORTH = {"stage1": -0.4, "stage2": 0.3, "stage3": 0.9, "stage4": 1.6, "all": 0.9}
"""Points that a block at a place adds."""


def made_up_plan(*, survivors=2, epochs=4, seeds=4, screening_seeds=2, metric="", **fields):
    """Five places of which one more cannot be grafted, in a network with one block per stage."""
    blocks = [NetworkBlock("conv1", 0, 16, (28, 28))]
    blocks += [NetworkBlock(f"layer{n}.0", n, 8 * 2**n, (56 >> n,) * 2) for n in range(1, 5)]
    candidates = [
        Candidate(
            name,
            (f"{name}/block_end",) if name != "all" else ("block_end",),
            f"block ends at {name}",
            tuple(f"layer{n}.0.bn2" for n in places),
            tuple(places),
            params=1000 + 10 * sum(places),
            macs=5000,
        )
        for name, places in zip(
            WORTH, [[1], [2], [3], [4], [1, 2, 3, 4]], strict=True
        )  # the network's order
    ]
    misfit = Candidate("stem", ("conv1",), "conv1", ("conv1",), (0,), reason="too <few> channels")
    recipe = load_recipe(
        "cpu_small", data="fashion_mini", model="resnet10_small", epochs=epochs, warmup_epochs=1.0
    )
    return PlacementPlan(
        wish=GraftSpec(block="coord_attention", at="*"),
        recipe=recipe,
        candidates=Candidates(NetworkMap(tuple(blocks), True), (misfit, *candidates), 1000, 5000),
        rungs=plan_rungs(len(WORTH), survivors, epochs, seeds=screening_seeds),
        survivors=survivors,
        seeds=final_seeds(seeds),
        controls=(),
        metric=metric,
        eta=2,
        **fields,
    )


def trained(worth=WORTH, *, fails=(), stop_after=None, ran=None):
    """Returns what stands for `run_study`.

    Args:
        worth: Points that each place adds.
        fails: (part of the folder's name, variant) of the trials that fail.
        stop_after: Trials, over all calls, after which the process is stopped.
        ran: List that every trial that was worked on is added to.
    """
    ran = [] if ran is None else ran

    def run(study, folder, **_):
        store = Store.prepare(folder, study)
        reopen(store)
        while claim := claim_next(store):
            if len(ran) == stop_after:
                claim.release()
                raise execution.StudyInterrupted("stopped")
            ran.append((folder.name, claim.variant, claim.seed))
            digests = {"init_digest": f"w{claim.seed}", "order_digest": f"o{claim.seed}"}
            claim.record_facts({"params": 1010, "macs": 5000, **digests})
            if (folder.name, claim.variant) in fails:
                claim.fail("RuntimeError: made up")
                continue
            luck = 7 * claim.seed % 5  # the same for all of a seed
            own = 0.01 * (3 * claim.seed % 7) * len(claim.variant)
            value = 80 + luck + own + worth.get(claim.variant, 0.0)
            epochs = study.recipe.epochs
            metrics = {"top1": value, "loss": 100 - value}
            claim.finish(dict.fromkeys(range(1, epochs + 1), metrics))

    return run
