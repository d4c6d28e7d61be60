"""Errors of the exporters and of the stages of a run."""


class ExportError(ValueError):
    """The model cannot be exported, or the file written does not compute it."""


class StageError(ValueError):
    """A stage cannot run in this workdir."""
