"""Files of a whole model: how it is built, what was grafted into it, and its weights.

The file is a safetensors file whose metadata have one entry, ``visgraft``: a JSON record of the
network's name in timm's registry, the arguments it is built with, and the plans of its grafts. It
holds tensors and plain values, and nothing of it is executed.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from visgraft._version import __version__
from visgraft.surgery import Graft, apply_plan
from visgraft.surgery.holders import Holder
from visgraft.tasks.checkpoint import read_checkpoint, read_record
from visgraft.tasks.errors import CheckpointError
from visgraft.tasks.files import write_atomically
from visgraft.tasks.weights import load_strictly

__all__ = ["load", "save"]

FORMAT = 1
_KEY = "visgraft"
_SUFFIX = ".safetensors"
_HEADER = 8  # bytes; a safetensors file has its length there, and then JSON
_NOT_OPTIONS = {"cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg"} | {
    "pretrained_cfg_overlay"  # these say where other weights are
}


def save(
    model: nn.Module,
    path: str | PathLike[str],
    *,
    grafts: Graft | Sequence[Graft] = (),
    name: str | None = None,
    options: Mapping[str, Any] | None = None,
    build: Callable[[], nn.Module] | None = None,
) -> None:
    """Writes a model so that :func:`load` can build it again, grafts and weights included.

    A network of timm's registry, ours included, is recorded by its name and by the arguments that
    it is built with. What leaves no trace in tensors, such as drop rates, is known from ``options``
    alone. Of other models the grafts and the weights are recorded, and :func:`load` is given the
    function that builds them. That this makes a model with the same tensors is tried before
    anything is written.

    Args:
        model: On any device, not wrapped by DDP or ``torch.compile``.
        path: Ends in ``.safetensors``; a file that is there is replaced when the new one is whole.
        grafts: What :func:`graft` or :func:`apply_plan` returned for this model, or for a part of
            it such as the network of a detector, in that order.
        name: In timm's registry; by default what the model says of itself.
        options: Arguments of ``timm.create_model``; by default the number of classes.
        build: For models that are not in the registry, or were changed by hand: builds the model
            without its grafts. It is not recorded.

    Raises:
        ValueError: The model has grafts that are not in ``grafts``, a graft cannot be written down,
            or what was given does not build this model; nothing is written.
        OSError: The file cannot be written.

    Example:
        >>> import timm
        >>> from visgraft.surgery import graft
        >>> net = timm.create_model("test_resnet", num_classes=10)
        >>> done = graft(net, "coord_attention", "block_end")
        >>> save(net, "net.safetensors", grafts=done)  # doctest: +SKIP
        >>> twin = load("net.safetensors")  # doctest: +SKIP
    """
    target = Path(path)
    if target.suffix != _SUFFIX:
        raise ValueError(
            f"save: the file is written as safetensors and must end in {_SUFFIX}, got {target.name}"
        )
    _check_unwrapped(model)
    done = [grafts] if isinstance(grafts, Graft) else list(grafts)
    plans = [_plan_of(one, model) for one in done]
    places = [_place_of(one, model) for one in done]
    if build is not None and (name is not None or options is not None):
        raise ValueError("save: build is for models without a name and options in timm's registry")
    if build is None and name is None:
        name, own_options = _own_name(model)
        options = own_options if options is None else options
    origin = None if name is None else {"name": name, "options": _plain(options or {})}
    if origin is not None or build is not None:
        _check_rebuilds(model, origin, build, plans, places)
    elif options:
        raise ValueError("save: options build a network of timm's registry; give its name too")
    elif not plans and any(isinstance(module, Holder) for module in model.modules()):
        raise ValueError("save: the model has grafts; pass them as grafts=")
    tensors, tied = _unshared(model)
    record = {"format": FORMAT, "version": __version__, "model": origin, "plans": plans}
    if any(places):
        record["places"] = places
    write_atomically(target, _to_bytes(tensors, json.dumps({**record, "tied": tied})))


def load(
    path: str | PathLike[str],
    *,
    build: Callable[[], nn.Module] | None = None,
    example: Any = None,
) -> nn.Module:
    """Builds the model of a file of :func:`save` or of ``visgraft train``, in evaluation mode.

    Nothing in the file is executed, and no random number is drawn.

    Args:
        path: What was written.
        build: For models that are not of timm's registry: builds the model without its grafts.
        example: For such models: what they are called with, see :func:`find_sites`.

    Returns:
        The model on the CPU, with grafts and weights, in the number types it was saved in.

    Raises:
        ValueError: The file is missing, damaged, would execute code, does not say what it is of, or
            does not fit the model that was built.

    Example:
        >>> model = load("net.safetensors")  # doctest: +SKIP
    """
    source = Path(path)
    if not _is_safetensors(source):
        return _load_trained(source, build)
    record, weights = _read(source)
    origin = record["model"]
    if origin is not None and build is not None:
        raise CheckpointError(
            f"checkpoint {source}: is of {origin['name']} and names its network itself; leave "
            "build out"
        )
    with _same_randomness():
        if build is not None:
            model = build()
        elif origin is not None:
            model = _create(origin, f"checkpoint {source}")
        else:
            raise CheckpointError(
                f"checkpoint {source}: is of a model that is not in timm's registry; pass build=, "
                "a function that builds it without its grafts"
            )
        _regraft(model, record["plans"], record.get("places", ()), example)
    _take_dtypes(model, weights)
    load_strictly(model, weights, source)
    return model.eval()


def _check_unwrapped(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise ValueError(f"save: model must be a torch.nn.Module, got {type(model).__name__}")
    inner = "module" if isinstance(model, (DataParallel, DistributedDataParallel)) else "_orig_mod"
    if hasattr(model, inner):
        raise ValueError(f"save: the model is wrapped in {type(model).__name__}; save its .{inner}")


def _plan_of(done: Graft, model: nn.Module) -> dict[str, Any]:
    if not isinstance(done, Graft):
        raise ValueError(f"save: grafts must be what graft() returned, got {type(done).__name__}")
    if all(done.model is not part for part in model.modules()):
        raise ValueError(f"save: {done!r} is of another model")
    if done.is_undone:
        raise ValueError(f"save: {done!r} is no longer in the model; leave it out")
    return done.plan


def _own_name(model: nn.Module) -> tuple[str | None, dict[str, Any]]:
    """Returns what a network of timm says of itself: architecture, tag and number of classes."""
    config = getattr(model, "pretrained_cfg", None)
    name = config.get("architecture") if isinstance(config, Mapping) else None
    if not isinstance(config, Mapping) or not isinstance(name, str):
        return None, {}
    classes = getattr(model, "num_classes", None)
    options = {"num_classes": classes} if classes not in (None, config.get("num_classes")) else {}
    tag = config.get("tag")
    return (f"{name}.{tag}" if tag else name), options


def _place_of(done: Graft, model: nn.Module) -> str:
    """Returns the path of the part of a model that was grafted, empty for the whole."""
    return next(path for path, part in model.named_modules() if part is done.model)


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(dict(options), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"save: an option is not plain data ({error}); timm takes names too, such as "
            "act_layer='silu'"
        ) from error


def _check_rebuilds(
    model: nn.Module,
    origin: Mapping[str, Any] | None,
    build: Callable[[], nn.Module] | None,
    plans: list[dict[str, Any]],
    places: list[str],
) -> None:
    """Raises ValueError if what is known of a model builds one with other tensors."""
    if origin is not None:
        with _same_randomness(), torch.device("meta"):
            twin = _create(origin, "save")
            _regraft(twin, plans, places)
        source = f"{origin['name']}, built with {origin['options']}"
    elif build is not None:
        with _same_randomness():
            twin = build()
            _regraft(twin, plans, places)
        source = "what build makes"
    else:
        return
    own, made = model.state_dict(), twin.state_dict()
    if more := [name for name in own if name not in made]:
        fault = f"{source}, has no {more[0]}, which the model has"
    elif fewer := [name for name in made if name not in own]:
        fault = f"{source}, has {fewer[0]}, which the model has not"
    elif other := [name for name in own if own[name].shape != made[name].shape]:
        fault = f"{source}, has {other[0]} in the shape {tuple(made[other[0]].shape)}, the model "
        fault += f"in {tuple(own[other[0]].shape)}"
    else:
        return
    raise ValueError(
        f"save: {fault}; give all grafts=, and name= and options=, or build=, that make this model"
    )


def _regraft(
    model: nn.Module,
    plans: Sequence[Mapping[str, Any]],
    places: Sequence[str],
    example: Any = None,
) -> None:
    if plans and not any(places):
        apply_plan(model, [*plans], example=example)
        return
    for plan, place in zip(plans, places, strict=True):
        try:
            part = model.get_submodule(place)
        except AttributeError as error:
            raise CheckpointError(
                f"load: the model that build makes has no part {place!r}, which was grafted"
            ) from error
        apply_plan(part, [plan], example=None if place else example)


def _unshared(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns each tensor once, and for further names of one the first."""
    first: dict[tuple[Any, ...], str] = {}
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"save: {name} is a {type(tensor).__name__}, not a tensor")
        if tensor.is_meta:
            raise ValueError("save: the model is on the meta device and has no values")
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and key in first:
            tied[name] = first[key]
            continue
        first[key] = name
        tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return tensors, tied


def _to_bytes(tensors: dict[str, Tensor], record: str) -> bytes:
    from safetensors.torch import save as to_bytes

    return to_bytes(tensors, metadata={_KEY: record})


def _is_safetensors(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(_HEADER + 1)[_HEADER:] == b"{"
    except OSError as error:
        raise CheckpointError(f"checkpoint {path}: cannot be read ({error.strerror})") from error


def _load_trained(path: Path, build: object) -> nn.Module:
    record = read_record(read_checkpoint(path), path)
    if record is None:
        raise CheckpointError(
            f"checkpoint {path}: holds weights and does not say what network they are of; build "
            "the model, graft it by apply_plan, and use its load_state_dict"
        )
    if build is not None:
        raise CheckpointError(f"checkpoint {path}: names its network itself; leave build out")
    from visgraft.tasks.evaluation import load_trained

    with _same_randomness():
        return load_trained(path).model


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the record and the weights of a file, tied names included."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = (file.metadata() or {}).get(_KEY)
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"checkpoint {path}: is damaged, or is no checkpoint") from error
    if about is None:
        raise CheckpointError(
            f"checkpoint {path}: holds weights and does not say what network they are of; build "
            "the model, graft it by apply_plan, and use its load_state_dict"
        )
    try:
        record = json.loads(about)
        form, version, tied = record["format"], record["version"], record.get("tied", {})
        _check_record(record, form)
        weights |= {name: weights[first] for name, first in tied.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {path}: its record is damaged ({error!r})") from error
    if form != FORMAT:
        raise CheckpointError(
            f"checkpoint {path}: was written by visgraft {version} in format {form}; this is "
            f"{__version__}, which reads format {FORMAT}"
        )
    return record, weights


def _check_record(record: Mapping[str, Any], form: object) -> None:
    if form != FORMAT:
        return
    origin = record["model"]
    if not isinstance(record["plans"], list):
        raise TypeError("plans")
    places = record.get("places", [""] * len(record["plans"]))
    if not isinstance(places, list) or not all(isinstance(place, str) for place in places):
        raise TypeError("places")
    if len(places) != len(record["plans"]):
        raise TypeError("places")
    if origin is not None and not (
        isinstance(origin["name"], str) and isinstance(origin["options"], dict)
    ):
        raise TypeError("model")


def _create(origin: Mapping[str, Any], owner: str) -> nn.Module:
    """Builds a network by name and options alone; nothing is downloaded or read."""
    from visgraft.models import create_model

    name, options = origin["name"], origin["options"]
    if ":" in name:
        raise CheckpointError(f"{owner}: {name!r} is no name of timm's registry")
    if refused := sorted(_NOT_OPTIONS & options.keys()):
        raise CheckpointError(
            f"{owner}: the options of {name} have {', '.join(refused)}, but the weights are those "
            "in the file"
        )
    try:
        return create_model(name, **options)
    except (ValueError, TypeError, RuntimeError, AssertionError) as error:
        raise CheckpointError(
            f"{owner}: {name} cannot be built with the options {options} ({error})"
        ) from error


def _take_dtypes(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Gives the tensors of a fresh model the number types of the saved ones."""
    kinds = {t.dtype for t in weights.values() if t.is_floating_point()}
    if len(kinds) == 1:
        model.to(kinds.pop())  # buffers that are not in the file included
        return
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and name in weights and tensor.dtype != weights[name].dtype:
            tensor.data = tensor.data.to(weights[name].dtype)


@contextmanager
def _same_randomness() -> Iterator[None]:
    """Leaves torch's random numbers as they were."""
    with torch.random.fork_rng(devices=()):
        yield
