"""Frozen pydantic models whose errors are sentences: field, rule, value, nearest legal name."""

from types import UnionType
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from visgraft.tasks.legal_names import nearest

__all__ = ["Checked", "sentences"]

_SHOWN = 80  # characters of a wrong value


class Checked(BaseModel):
    """A frozen model without unknown fields, whose numbers are finite and no booleans."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _boolean_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and info.field_name:
            annotation = cls.model_fields[info.field_name].annotation
            kinds = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
            if bool not in kinds and {int, float} & set(kinds):
                raise ValueError("must be a number")
        return value


def sentences(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Returns one sentence for each thing that is wrong, starting with the field.

    Args:
        error: What pydantic complained of.
        model: The class whose fields were read.
    """
    return [_sentence(detail, model) for detail in error.errors()]


def _sentence(detail: ErrorDetails, model: type[BaseModel]) -> str:
    path = ".".join(str(part) for part in detail["loc"])
    kind, value = detail["type"], detail["input"]
    owner = _owner(detail["loc"], model)
    name = str(detail["loc"][-1])
    if kind == "extra_forbidden":
        return f"{path}: there is no such field{nearest(name, owner.model_fields)}"
    if kind == "missing":
        field = owner.model_fields.get(name)
        return f"{path}: is required" + (f" ({field.description})" if field else "")
    rule, hint = detail["msg"].replace("Input should", "must"), ""
    if kind == "value_error":
        rule = str(detail.get("ctx", {}).get("error", rule))
    if kind == "literal_error":
        expected = detail.get("ctx", {})["expected"].replace(" or ", ", ")
        legal = [word.strip("'") for word in expected.split(", ")]
        rule, hint = f"must be one of {', '.join(legal)}", nearest(str(value), legal)
    shown = repr(value)
    told = kind == "value_error" and shown in rule
    return f"{path}: {rule}" + ("" if told else f", got {shown[:_SHOWN]}") + hint


def _owner(location: tuple[int | str, ...], model: type[BaseModel]) -> type[BaseModel]:
    """Returns the model, nested or not, that the last word of ``location`` is a field of."""
    for part in location[:-1]:
        field = model.model_fields.get(str(part))
        for nested in get_args(field.annotation) if field else ():
            if isinstance(nested, type) and issubclass(nested, BaseModel):
                model = nested
    return model
