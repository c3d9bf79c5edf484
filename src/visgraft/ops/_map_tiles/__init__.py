"""Maps divided among the programs of a GPU kernel, for work that is one pass over each value."""

__all__: list[str] = []
