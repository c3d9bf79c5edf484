"""From a recipe to the network: weights by the seed, weights to start from, then grafts."""

import hashlib
from collections.abc import Set
from typing import Any

import torch
from timm.models import get_pretrained_cfg
from torch import nn

from visgraft.models import create_model
from visgraft.surgery import Graft, apply_plan, graft
from visgraft.surgery.holders import Holder
from visgraft.tasks.checkpoint import InputSpec, RunRecord
from visgraft.tasks.detection.building import detector_input, surround
from visgraft.tasks.errors import TrainingError
from visgraft.tasks.images import RunData
from visgraft.tasks.randomness import derive_seed, random_stream
from visgraft.tasks.recipe import GraftSpec, Recipe
from visgraft.tasks.weights import is_of_detector, load_start, load_start_of_grafts

__all__ = [
    "add_grafts",
    "build_base",
    "build_model",
    "network_of",
    "rebuild_model",
    "resolve_input",
    "weights_digest",
]

DEFAULT_SIZE = 224  # pixels


def resolve_input(recipe: Recipe, data: RunData) -> InputSpec:
    """Returns how images become the network's input.

    A pretrained network sees images as it saw them when it was trained, another one as the data
    suggest; ``recipe.image_size`` decides the size in both cases. A detector's images differ in
    size; for it, the size is that of a square one.

    Raises:
        TrainingError: The network is not in the registry, so that nothing is known of its weights.
    """
    if recipe.finds_objects:
        return detector_input(recipe)
    config = get_pretrained_cfg(recipe.model)
    own = config.input_size[1:] if config else None
    wanted = (recipe.image_size, recipe.image_size) if recipe.image_size else None
    if recipe.pretrained and not config:
        raise TrainingError(
            f"model {recipe.model!r}: what its pretrained weights expect to see is not known; "
            "download them and start from the file with checkpoint"
        )
    if not (config and recipe.pretrained):
        size = wanted or data.image_size or own or (DEFAULT_SIZE, DEFAULT_SIZE)
        return InputSpec((size[0], size[1]), data.mean, data.std)
    size = wanted or own or (DEFAULT_SIZE, DEFAULT_SIZE)
    return InputSpec(
        (size[0], size[1]),
        _for_channels(config.mean, data.in_chans),
        _for_channels(config.std, data.in_chans),
        config.crop_pct,
        config.interpolation,
    )


def build_model(recipe: Recipe, data: RunData) -> tuple[nn.Module, list[Graft]]:
    """Builds the network of a recipe, in training mode, and grafts the recipe's blocks into it.

    All recipes that differ in their grafts alone get bit-equal tensors outside the grafts: the base
    network draws its weights from the recipe's seed, each graft from a seed of its own.

    Raises:
        ValueError: The network, the weights to start from, or a graft do not fit.
    """
    model = build_base(recipe, data)
    return model, add_grafts(model, recipe, data)


def build_base(recipe: Recipe, data: RunData) -> nn.Module:
    """Builds the network without grafts; weights to start from are loaded.

    For detection it is the detector around that network.

    Raises:
        ValueError: There is no such network, or weights do not fit.
    """
    spec = resolve_input(recipe, data)
    with random_stream(derive_seed(recipe.seed, "network")):
        model = _create(recipe, len(data.classes), data.in_chans, spec, recipe.pretrained)
    starts_detector = _starts_detector(recipe)
    if recipe.checkpoint and not starts_detector:
        load_start(model, recipe.checkpoint, quiet=recipe.finds_objects)
    whole = _surrounded(model, recipe, len(data.classes), spec)
    if recipe.checkpoint and starts_detector:
        load_start(whole, recipe.checkpoint)
    return _laid_out(whole, recipe)


def network_of(model: nn.Module, recipe: Recipe) -> nn.Module:
    """Returns the part of a recipe's model that is in timm's registry, and that is grafted."""
    return model.get_submodule("backbone.network") if recipe.finds_objects else model


def add_grafts(model: nn.Module, recipe: Recipe, data: RunData) -> list[Graft]:
    """Grafts the recipe's blocks into the network of `build_base`.

    Patterns of places are those of the network, also where a detector is around it. Where the
    recipe starts from a checkpoint that has weights of these grafts, they are loaded.

    Raises:
        ValueError: A graft does not fit, or the checkpoint has weights without a place.
    """
    whole, model = model, network_of(model, recipe)
    started = whole if _starts_detector(recipe) else model
    base = set(started.state_dict())
    size = resolve_input(recipe, data).size
    grafts = []
    for index, wish in enumerate(recipe.grafts):
        old = set(model.parameters())
        with random_stream(derive_seed(recipe.seed, "graft", index)):
            done = graft(
                model,
                wish.block,
                list(wish.at),
                how=wish.how,
                start=wish.start,
                strict=wish.strict,
                example=(2, data.in_chans, *size),
                **wish.options,
            )
        _freeze(model, old, wish)
        grafts.append(done)
    if recipe.checkpoint:
        if started is not whole:  # the detector has taken the classifier off
            base |= _names_of_bare(recipe, data)
        load_start_of_grafts(started, recipe.checkpoint, base)
    _laid_out(whole, recipe)
    return grafts


def rebuild_model(record: RunRecord) -> nn.Module:
    """Builds the network of a checkpoint's record again, grafts included, without its weights."""
    recipe = Recipe(**record.recipe)
    with random_stream(recipe.seed):
        network = _create(recipe, len(record.classes), record.in_chans, record.input, False)
        whole = _surrounded(network, recipe, len(record.classes), record.input)
        model = network_of(whole, recipe)
        for plan, wish in zip(record.plans, recipe.grafts, strict=True):
            old = set(model.parameters())
            apply_plan(model, plan)
            _freeze(model, old, wish)
    return _laid_out(whole, recipe)


def weights_digest(model: nn.Module, *, exclude_grafts: bool = True) -> str:
    """Returns the SHA-256 (hex) of the tensors of a model: names, types, shapes and values.

    Equal digests prove that two models hold the same numbers under the same names.

    Args:
        model: On any device.
        exclude_grafts: Leave out the tensors of grafts that stand beside a layer; a graft that took
            a layer's place changes the digest.
    """
    inside = tuple(f"{n}." for n, m in model.named_modules() if isinstance(m, Holder))
    stream = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if exclude_grafts and name.startswith(inside):
            continue
        stream.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        stream.update(flat.view(torch.uint8).numpy().tobytes())
    return stream.hexdigest()


def _surrounded(network: nn.Module, recipe: Recipe, num_classes: int, spec: InputSpec) -> nn.Module:
    """Returns what learns: the network itself, or the detector around it."""
    if not recipe.finds_objects:
        return network
    with random_stream(derive_seed(recipe.seed, "detector")):
        return surround(network, recipe, num_classes, spec)


def _starts_detector(recipe: Recipe) -> bool:
    """Returns whether a recipe starts from the weights of a detector, heads included."""
    return bool(recipe.checkpoint and recipe.finds_objects and is_of_detector(recipe.checkpoint))


def _names_of_bare(recipe: Recipe, data: RunData) -> set[str]:
    """Returns the names of the network's tensors before a detector takes its classifier off."""
    spec = resolve_input(recipe, data)
    with random_stream(recipe.seed):
        return set(_create(recipe, len(data.classes), data.in_chans, spec, False).state_dict())


def _create(
    recipe: Recipe, num_classes: int, in_chans: int, spec: InputSpec, pretrained: bool
) -> nn.Module:
    """Creates the bare network; what is off is not passed, since not every network knows it."""
    off = {"drop_rate": recipe.drop_rate, "drop_path_rate": recipe.drop_path_rate}
    arguments: dict[str, Any] = {name: rate for name, rate in off.items() if rate}
    config = get_pretrained_cfg(recipe.model)
    if config and config.fixed_input_size:
        arguments["img_size"] = spec.size
    arguments |= recipe.model_args
    arguments |= {"num_classes": num_classes, "in_chans": in_chans}
    try:
        return create_model(recipe.model, pretrained=pretrained, **arguments)
    except OSError as error:
        raise TrainingError(
            f"model {recipe.model!r}: its pretrained weights cannot be downloaded ({error}); start "
            "from a file with checkpoint, or set pretrained to false"
        ) from error


def _freeze(model: nn.Module, old: Set[nn.Parameter], wish: GraftSpec) -> None:
    """Stops the parameters that a graft brought along from learning, if it is to learn nothing."""
    for parameter in model.parameters() if not wish.learns else ():
        if parameter not in old:
            parameter.requires_grad_(False)


def _laid_out(model: nn.Module, recipe: Recipe) -> nn.Module:
    """Returns the model in training mode, its weights in the memory layout of the recipe."""
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return model.train()


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Returns a network's mean or deviation for images with another number of channels."""
    if len(values) == channels:
        return tuple(values)
    return (sum(values) / len(values),) * channels
