"""Shows how many images have been measured, and the time left."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from time import perf_counter

import numpy as np
from tqdm import tqdm

from gmpq_tf.progress import INTERVALS, duration


def counted(
    batches: Iterable[tuple], images: int, what: str, progress: str = "auto"
) -> Iterator[tuple]:
    """Yields batches, and shows how many of their images the caller is done with.

    Args:
        batches: tuples that begin with the images, [B, ...].
        images: their number in all batches.
        what: name of what is measured.
        progress: as of `WorkdirConfig`.

    Yields:
        The batches.
    """
    kind = "bar" if sys.stdout.isatty() else "line"
    kind = kind if progress == "auto" else progress
    shown = tqdm(
        total=images,
        desc=what,
        unit="image",
        file=sys.stdout,
        leave=False,
        disable=kind != "bar",
    )
    began = due = perf_counter()
    done = 0
    with shown:
        for batch in batches:
            yield batch
            count = np.shape(batch[0])[0]
            done, now = done + count, perf_counter()
            shown.update(count)
            if kind == "line" and now >= due + INTERVALS["line"] and done < images:
                due, left = now, (now - began) / done * (images - done)
                print(
                    f"{what}: {done:,} of {images:,} images, {duration(left)} left",
                    flush=True,
                )
