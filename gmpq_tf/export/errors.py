"""Errors of the exporters."""


class ExportError(ValueError):
    """The model cannot be exported, or the file written does not compute it."""
