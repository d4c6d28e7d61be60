"""The errors that a search raises by itself."""


class DivergenceError(RuntimeError):
    """A risk or an importance is no longer finite."""


class StrategyError(ValueError):
    """A strategy is unknown, or an option of one is invalid."""
