"""The error that all exporters raise."""


class ExportError(ValueError):
    """The model cannot be exported, or the file does not compute the same."""
