"""What is known of a trial before it trains, and the proof that its comparison is fair."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from visgraft.data import EpochSampler
from visgraft.study.errors import StudyError
from visgraft.study.plan import Study, trials
from visgraft.study.pricing import count_macs, count_parameters
from visgraft.study.store import Store, TrialRecord
from visgraft.tasks.building import add_grafts, build_base, weights_digest
from visgraft.tasks.images import RunData, load_images
from visgraft.tasks.recipe import Recipe

__all__ = ["TrialFacts", "check_images", "check_pairing", "gather_facts", "open_images"]


@dataclass(frozen=True)
class TrialFacts:
    """What a trial starts with.

    Attributes:
        params: Parameters of the network, grafts and detector included.
        macs: Multiplications with addition for one image; of a detector, those of its backbone and
            pyramid.
        init_digest: Of all tensors of the network without grafts.
        order_digest: Of the order in which the training images are drawn.
    """

    params: int
    macs: int
    init_digest: str
    order_digest: str


def open_images(store: Store, recipe: Recipe, *, progress: bool = False) -> RunData:
    """Loads the images of a study, with a bar where it takes a while and ``progress`` asks for it.

    Raises:
        StudyError: They are not those that the study began with.
        DataError: They cannot be used.
    """
    data = load_images(recipe, progress)
    check_images(store, recipe, data)
    return data


def check_images(store: Store, recipe: Recipe, data: RunData) -> None:
    """Makes sure that the images are those of the study; the first ones it sees are.

    Raises:
        StudyError: They are not.
    """
    if store.settle("data", data.fingerprint) != data.fingerprint:
        raise StudyError(
            f"study: the images in {recipe.data} are not those that {store.folder} began with; put "
            "them back, or start the study in a new folder."
        )


def gather_facts(recipe: Recipe, data: RunData) -> TrialFacts:
    """Builds the network of a trial and describes it.

    Raises:
        StudyError: A tensor outside the grafts differs from the network without grafts.
        ValueError: The network cannot be built.
    """
    model = build_base(recipe, data)
    init_digest = weights_digest(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    add_grafts(model, recipe, data)
    after = model.state_dict()
    changed = [n for n, t in before.items() if n in after and not torch.equal(t, after[n])]
    if changed:
        raise StudyError(
            f"study: grafting changed {changed[0]}, which is outside the grafts; the comparison "
            "would not be paired."
        )
    order = EpochSampler(len(data.train), recipe.seed).digest(recipe.epochs)
    return TrialFacts(count_parameters(model), count_macs(model, recipe, data), init_digest, order)


def check_pairing(study: Study, records: Iterable[TrialRecord]) -> None:
    """Makes sure that trials of one seed start alike and those of two seeds do not.

    The initial weights of two seeds may be equal where both start from the same file.

    Args:
        study: The study.
        records: Of its trials, in their order.

    Raises:
        StudyError: They do not; the text names two trials.
    """
    orders: dict[str, TrialRecord] = {}
    starts: dict[tuple[str | None, str], TrialRecord] = {}
    by_seed: dict[tuple[int, str], TrialRecord] = {}
    random_start = not (study.recipe.pretrained or study.recipe.checkpoint)
    networks = {
        spec.variant: f"{spec.recipe.model} {spec.recipe.model_args}"
        for spec in trials(study.model_copy(update={"seeds": study.seeds[:1]}))
    }
    for record in records:
        if not (record.init_digest and record.order_digest):
            continue
        network = networks[record.variant]
        first = by_seed.setdefault((record.seed, network), record)
        if first.init_digest != record.init_digest:
            raise _unfair(first, record, "start from different weights")
        any_network = by_seed.setdefault((record.seed, ""), record)
        if any_network.order_digest != record.order_digest:
            raise _unfair(any_network, record, "see the images in different orders")
        other = orders.setdefault(record.order_digest, record)
        if other.seed != record.seed:
            raise _unfair(other, record, "see the images in the same order")
        other = starts.setdefault((record.init_digest, network), record)
        if random_start and other.seed != record.seed:
            raise _unfair(other, record, "start from the same weights")


def _unfair(one: TrialRecord, other: TrialRecord, what: str) -> StudyError:
    return StudyError(
        f"study: {one.variant} seed {one.seed} and {other.variant} seed {other.seed} {what}; the "
        "comparison would not be fair. Was the data, the recipe or visgraft changed in between?"
    )
