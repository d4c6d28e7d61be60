"""What can go wrong during a search."""


class DivergenceError(RuntimeError):
    """A risk or an importance is no longer finite."""
