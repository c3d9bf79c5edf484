"""Puts blocks into a model that was not written for them, and takes them out again."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.optim import Optimizer

from visgraft.surgery._difference import max_difference
from visgraft.surgery._draft import BlockMaker, How, Order, Start, check_order
from visgraft.surgery._execution import Outcome, carry_out
from visgraft.surgery._plan_format import write_plan
from visgraft.surgery._select import At, select
from visgraft.surgery.report import GraftRow, Totals, summary_line, table_of
from visgraft.surgery.sites import Site, survey

__all__ = ["Graft", "graft"]


class Graft:
    """Blocks that were put into a model, what they cost, and the way back.

    ``print`` shows the table, and in one line what happened to the model.
    """

    def __init__(self, model: nn.Module, outcome: Outcome) -> None:
        self.model = model
        self._outcome = outcome
        self._is_undone = False

    @property
    def sites(self) -> list[Site]:
        """Where blocks were put, in the order in which the model runs them."""
        return [row.site for row in self._outcome.rows]

    @property
    def rows(self) -> list[GraftRow]:
        """What was done at each of the sites."""
        return list(self._outcome.rows)

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Path and reason of each site that ``strict=False`` left out."""
        return list(self._outcome.skipped)

    @property
    def totals(self) -> Totals:
        """Tensors kept, parameters and MACs of the whole model."""
        return self._outcome.totals

    @property
    def plan(self) -> dict[str, Any]:
        """What :func:`apply_plan` needs to repeat the graft in another process; JSON takes it.

        Raises:
            ValueError: The block was made by a function, or an option is nothing that JSON holds.
        """
        return write_plan(self._outcome)

    @property
    def is_undone(self) -> bool:
        """Whether the blocks were taken out again."""
        return self._is_undone

    @property
    def max_difference(self) -> float:
        """Largest absolute difference between the model's outputs with and without the graft, now.

        The model is run twice in eval mode, on the example or on seeded noise of its shape.

        Raises:
            ValueError: The model is on the meta device, or the graft was undone.
        """
        self._check_in_place("max_difference")
        return max_difference(self.model, self._outcome.example, self.disabled)

    def parameters(self) -> list[nn.Parameter]:
        """Returns the new parameters; those that a block took over from its layer are not new."""
        operations = self._outcome.operations
        found = {p: None for op in operations for p in op.new.parameters()}
        old = {p for op in operations for p in op.removed_parameters().values()}
        return [p for p in found if p not in old]

    def add_to(self, optimizer: Optimizer, **group: Any) -> None:
        """Gives the new parameters to an optimizer that exists already, as a group of their own.

        A learning rate schedule that exists already does not know the group: make it anew.

        Args:
            optimizer: Of the model as it was before the graft.
            **group: Settings of the group, such as ``lr``; by default those of the optimizer.

        Raises:
            ValueError: The optimizer has the new parameters already, or has parameters of layers
                that the graft took out of the model; it is then as it was.

        Example:
            >>> net = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU())
            >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
            >>> graft(net, "cot", "0", how="after", example=(1, 3, 8, 8)).add_to(optimizer, lr=0.5)
            >>> [group["lr"] for group in optimizer.param_groups]
            [0.1, 0.5]
        """
        self._check_in_place("add_to")
        held = {p for known in optimizer.param_groups for p in known["params"]}
        new = self.parameters()
        if not held.isdisjoint(new):
            raise ValueError(
                f"Graft.add_to: the optimizer has {len(held.intersection(new))} of the {len(new)} "
                "new parameters already; add a graft once, or make the optimizer after it"
            )
        gone = self._gone()
        stale = [name for name, parameter in gone.items() if parameter in held]
        if stale:
            more = f" and {len(stale) - 3} more" if len(stale) > 3 else ""
            raise ValueError(
                f"Graft.add_to: the optimizer has parameters of layers that the graft took out "
                f"({', '.join(stale[:3])}{more}); make it anew from the model's parameters"
            )
        optimizer.add_param_group({"params": new, **group})

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Lets the model compute without the graft for a while, with the weights of now."""
        self._check_in_place("disabled")
        with ExitStack() as stack:
            for operation in self._outcome.operations:
                stack.enter_context(operation.disabled())
            yield

    def undo(self) -> None:
        """Takes the blocks out; the model is built as before, down to its hooks.

        Tensors that were trained since keep their values, also those that a block took over from
        its layer; a layer that was replaced comes back with those it had.

        Raises:
            ValueError: The graft was undone before, or a later graft stands on it.
        """
        self._check_in_place("undo")
        obstacles = (operation.obstacle() for operation in self._outcome.operations)
        obstacle = next((o for o in obstacles if o is not None), None)
        if obstacle is not None:
            raise ValueError(f"Graft.undo: {obstacle}")
        for operation in reversed(self._outcome.operations):
            operation.revert()
        self._is_undone = True

    def table(self) -> str:
        """Returns one line per site: what was done, and what it costs."""
        return table_of(self._outcome.rows, self._outcome.skipped)

    def __str__(self) -> str:
        has_values = not any(p.is_meta for p in self.model.parameters())
        difference = self.max_difference if has_values and not self._is_undone else None
        text = f"{self.table()}\n{summary_line(self.totals, difference)}"
        gone = 0 if self._is_undone else len(self._gone())
        if not gone:
            return text
        return f"{text}\n{gone} parameters left the model: make its optimizers anew"

    def __repr__(self) -> str:
        sites = f"{len(self.sites)} site{'s' if len(self.sites) > 1 else ''}"
        state = ", undone" if self._is_undone else ""
        return f"<Graft of {self._outcome.order.block!r} at {sites}{state}>"

    def _gone(self) -> dict[str, nn.Parameter]:
        """Returns the parameters of replaced layers that the model has no longer, by name."""
        current = set(self.model.parameters())
        return {
            f"{row.site.path}.{name}": parameter
            for row, operation in zip(self._outcome.rows, self._outcome.operations, strict=True)
            for name, parameter in operation.removed_parameters().items()
            if parameter not in current
        }

    def _check_in_place(self, what: str) -> None:
        if self._is_undone:
            raise ValueError(f"Graft.{what}: this graft has been undone")


def graft(
    model: nn.Module,
    block: str | BlockMaker,
    at: At,
    *,
    how: How | None = None,
    start: Start = "identity",
    strict: bool = True,
    example: Any = None,
    **options: Any,
) -> Graft:
    """Puts a block at chosen layers of ``model``, in place.

    The model keeps every tensor under its name, and each layer its class, place and hooks: the
    block becomes a child of the layer (``<path>.graft``) and works through a hook. Only
    ``how="replace"`` under ``start="paper"`` takes layers out. Everything is checked on shapes
    before anything changes; after an error the model is as it was. Make optimizers afterwards, or
    give the new parameters to one that exists by :meth:`Graft.add_to`; graft before
    ``torch.compile`` and DDP.

    Args:
        model: Any module that works on images or feature maps.
        block: Name in the catalogue, or a function from :class:`Site` to a module, or to None to
            leave the site out.
        at: Pattern of module paths (``'layer4.*.conv2'``; of nested matches the outermost wins),
            a site kind (``'conv3x3'``, ``'downsample'``, ``'block_end'``, ``'stage_end'``), either
            with a stage (``'stage4/conv3x3'``), a predicate on :class:`Site`, or a list of these.
        how: ``'after'`` sends the layer's output through the block, ``'parallel'`` adds the block's
            output for the layer's input, ``'replace'`` takes the layer out. By default mixers and
            downsampling blocks replace convolutions, and all else goes after the layer.
        start: ``'identity'``: the model computes what it did; a factor per channel that starts at
            zero multiplies what the block changes, unless the block begins as the identity. What
            replaces a layer takes over its weights, or else stands beside it (``'parallel'``).
            ``'paper'``: the block as published, from its own initial weights.
        strict: False leaves out the sites where the block does not fit, and says so in the report.
        example: What the model is called with, see :func:`find_sites`.
        **options: Of the block.

    Returns:
        The graft: report, plan, and the way back.

    Raises:
        ValueError: Nothing matches ``at``, the block does not fit, or the model cannot be grafted.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU())
        >>> done = graft(net, "coord_attention", "conv3x3", example=(1, 3, 16, 16))
        >>> done.max_difference
        0.0
    """
    order = Order(block, how, start, options)
    check_order("graft", order)
    found = survey("graft", model, example)
    return Graft(
        model, carry_out("graft", model, order, found, lambda s: select(s, at), strict=strict)
    )
