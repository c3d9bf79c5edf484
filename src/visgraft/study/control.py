"""Controls of a study file: networks that a variant must beat besides the baseline."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from visgraft.tasks.validation import Checked

__all__ = ["Control", "Kind", "expand"]

Kind = Literal["identity", "widened"]
KINDS: tuple[str, ...] = get_args(Kind)


class Control(Checked):
    """A control of one variant, trained with the same seeds.

    Attributes:
        kind: ``identity`` inserts the variant's blocks so that they compute what the network
            computed before and cannot learn; ``widened`` is the base network without blocks, wide
            enough to match the variant.
        of: Name of the variant.
        match: What a widened network has in common with the variant, within 1 %.
        model_args: The width that was found, as arguments of the base network's constructor;
            written when the study starts.
    """

    kind: Kind
    of: str
    match: Literal["parameters", "macs"] | None = None
    model_args: dict[str, Any] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _fits_its_kind(self) -> "Control":
        if self.kind == "identity":
            given = [name for name in ("match", "model_args") if getattr(self, name) is not None]
            if given:
                raise ValueError(
                    f"{given[0]} is for widened; an identity control has the variant's"
                )
        return self

    @property
    def measure(self) -> Literal["parameters", "macs"]:
        """What is matched, the default filled in."""
        return self.match or "parameters"

    @property
    def is_open(self) -> bool:
        """Whether the width is still to be found."""
        return self.kind == "widened" and self.model_args is None


def expand(value: Any, variants: Mapping[str, Any]) -> Any:
    """Turns the short forms of ``controls`` into named controls.

    ``[widened, identity]`` asks for one of each for every variant, ``widened_cot`` and so on; an
    identity control only for variants that graft into the base network.

    Args:
        value: As it stands in the file.
        variants: The study's, by name.

    Raises:
        ValueError: It is none of the forms.
    """
    if value is None:
        return {}
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list | tuple):
        wrong = [kind for kind in value if kind not in KINDS]
        if wrong:
            raise ValueError(f"there is no control {wrong[0]!r}; choose from {', '.join(KINDS)}")
        return {
            f"{kind}_{name}": {"kind": kind, "of": name}
            for kind in value
            for name, variant in variants.items()
            if kind == "widened" or can_be_frozen(variant)
        }
    if not isinstance(value, Mapping):
        raise ValueError(f"must be a list of {' and '.join(KINDS)}, or 'name: settings' lines")
    return {name: _complete(name, settings, variants) for name, settings in value.items()}


def can_be_frozen(variant: Any) -> bool:
    """Tells whether a variant is the base network with blocks."""
    return bool(variant.grafts) and not (variant.model or variant.model_args)


def _complete(name: Any, settings: Any, variants: Mapping[str, Any]) -> Any:
    """Fills in what the name of a control and the number of variants leave no doubt about."""
    if isinstance(settings, Control):
        return settings
    if not isinstance(settings, Mapping | None):
        raise ValueError(f"{name} must be settings such as {{of: VARIANT, match: parameters}}")
    known: dict[str, Any] = {"kind": name} if name in KINDS else {}
    if len(variants) == 1:
        known["of"] = next(iter(variants))
    return known | dict(settings or {})
