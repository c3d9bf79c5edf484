"""Latency and memory of a study's networks, measured side by side once nothing trains."""

__all__: list[str] = []
