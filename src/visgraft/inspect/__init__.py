"""Looking at a model: what it costs."""

from visgraft.inspect.cost import Cost, cost

__all__ = ["Cost", "cost"]
