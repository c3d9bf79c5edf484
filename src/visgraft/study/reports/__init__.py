"""What a study found, as pages, tables and pictures: report, comparison of two studies."""

__all__: list[str] = []
