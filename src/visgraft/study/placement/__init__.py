"""Where does a block help? Candidates, screening by successive halving, a final study, a map."""

__all__: list[str] = []
