"""What can go wrong during a search."""


class DivergenceError(RuntimeError):
    """A risk or an importance is no longer finite."""


class StrategyError(ValueError):
    """A strategy, or an option of one, that cannot be used as it was given."""
