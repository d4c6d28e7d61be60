"""Say which valid name a wrong one was probably meant to be."""

import difflib
from collections.abc import Iterable


def suggest(name: str, valid: Iterable[str]) -> str:
    """Returns a sentence that names the valid name nearest to a wrong one.

    Args:
        name: the name that was not found.
        valid: the names that would have been accepted.

    Returns:
        `Did you mean 'x'?` where one is near, the list of all names otherwise.
    """
    valid = list(valid)
    near = difflib.get_close_matches(name, valid, n=1)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"Valid names: {', '.join(map(repr, valid)) or 'none'}."
