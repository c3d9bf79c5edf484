"""Trials on the machines of a Ray cluster."""

__all__: list[str] = []
