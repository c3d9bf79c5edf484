"""One graft of a recipe."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from visgraft.tasks import legal_names
from visgraft.tasks.field_types import Arguments, as_tuple
from visgraft.tasks.validation import Checked

__all__ = ["GraftSpec"]


class GraftSpec(Checked):
    """One graft of a recipe, with the arguments of `visgraft.graft`."""

    block: str = Field(description="Name of a block in the catalogue.")
    at: Annotated[tuple[str, ...], BeforeValidator(as_tuple), Field(min_length=1)] = Field(
        description="Where: path patterns (layer4.*.conv2) or site kinds (stage4/conv3x3)."
    )
    how: Literal["replace", "after", "parallel"] | None = Field(
        None, description="replace, after or parallel; None takes the habit of the block's role."
    )
    start: Literal["identity", "paper"] = Field(
        "identity",
        description="identity computes at first what the network computed before; paper takes the "
        "paper's own initialisation.",
    )
    strict: bool = Field(
        True, description="Whether a site that the block does not fit is an error or left out."
    )
    options: Arguments = Field({}, description="Arguments of the block beside its channels.")
    learns: bool = Field(
        True, description="Whether training changes the graft's own parameters; no freezes them."
    )

    @field_validator("options")
    @classmethod
    def _options_exist(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "block" in info.data:
            legal_names.check_block(info.data["block"], options)
        return options

    @field_validator("block")
    @classmethod
    def _block_exists(cls, block: str) -> str:
        legal_names.check_block(block, {})
        return block
