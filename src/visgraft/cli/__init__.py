"""The command `visgraft`: one file per subcommand, which parses, calls and prints."""

__all__: list[str] = []
