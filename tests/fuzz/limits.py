"""What a reader may take: five seconds, and 500 MB more than before."""

import contextlib
import signal
import time
from pathlib import Path

SECONDS = 5
MEGABYTES = 500
_STATUS = Path("/proc/self/status")


class LimitExceeded(BaseException):
    """No `Exception`: a reader that catches all of those must not hide it."""


@contextlib.contextmanager
def limited(what):
    """Raises where the block takes too long or too much memory.

    Args:
        what: the case, for the message.
    """
    before, start = _reset_peak(), time.monotonic()
    previous = signal.signal(signal.SIGALRM, _too_slow)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    grown, seconds = _kilobytes("VmHWM") - before, time.monotonic() - start
    if grown > 1000 * MEGABYTES or seconds > SECONDS:
        raise LimitExceeded(f"{what} took {seconds:.1f} s and {grown // 1000} MB")


def _too_slow(number, frame):
    raise LimitExceeded(f"more than {SECONDS} s")


def _reset_peak():
    """Sets the peak of this process to what it holds now; returns that, in kB."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _kilobytes("VmRSS")


def _kilobytes(key):
    if not _STATUS.exists():  # not Linux
        return 0
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
