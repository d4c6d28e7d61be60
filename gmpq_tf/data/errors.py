"""The error of the data package."""


class DataError(ValueError):
    """Images, labels or their description cannot be used as they are."""
