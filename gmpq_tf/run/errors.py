"""Errors of the stages of a run."""


class StageError(ValueError):
    """A stage cannot run in this workdir."""
