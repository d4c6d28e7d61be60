"""Turns the data that a caller passes into batches for a model.

`calibrate`, `snap_biases`, the search, and the exporters' checks all accept the same:

- an array [images, ...]; for several inputs a dict by name, or a list or tuple in the
  order of `model.inputs`;
- a `tf.data.Dataset`, a `keras.utils.PyDataset`, a generator or a list of batches, each
  the inputs, or (inputs, labels), or (inputs, labels, sample weights).
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import keras
import numpy as np

from gmpq_tf.graph import Graph, Ref, fill
from gmpq_tf.inputs import InputError, leaves_of, match_inputs

BATCH_SIZE = 64
# Of inference: the overhead of a call weighs most with small tensors.
LARGEST_BATCH, LARGEST_TENSOR = 512, 2**25
MOST_IMAGES = 16_384  # how many are read from a data set that may be endless

Batch = tuple[list[np.ndarray], Any]


def inference_batch(graph: Graph) -> int:
    """Images to compute at once without training: 512, or fewer if tensors are large.

    64 at least; between them as many as make the largest tensor 32 MiB.

    Args:
        graph: graph of the model; its own batch size, if it has one, is returned.
    """
    fixed = ModelInputs(graph).batch_size
    if fixed is not None:
        return fixed
    image = max(4 * math.prod(d or 1 for d in shape[1:]) for shape in graph.shapes)
    return min(max(LARGEST_TENSOR // image, BATCH_SIZE), LARGEST_BATCH)


class ModelInputs:
    """The inputs of a model: checks given values, and arranges them for a call.

    Args:
        graph: the model's graph.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.names = dict(zip(graph.inputs, graph.input_names, strict=True))
        self.shapes = {i: graph.shapes[i] for i in graph.inputs}

    @property
    def batch_size(self) -> int | None:
        """The batch size that the model was built for; None: any."""
        return next((s[0] for s in self.shapes.values() if s[0] is not None), None)

    def read(self, given: Any) -> list[np.ndarray]:
        """Arrays in the order of `model.inputs`, of the model's types.

        Raises:
            InputError: names, shapes or numbers of images do not fit the model.
        """
        self._check_order(given)
        refs = [Ref(index) for index in self.graph.inputs]
        structure = self.graph.input_structure
        pairs = match_inputs(structure, given, refs, lambda r: self.names[r.index])
        found = {ref.index: self._array(ref.index, value) for ref, value in pairs}
        arrays = [found[index] for index in self.graph.inputs]
        if len({len(array) for array in arrays}) > 1:
            raise InputError(
                "Every input must have as many images. Received: "
                f"{self._listed({i: a.shape for i, a in found.items()})}. "
                "Pass the rows that belong together."
            )
        return arrays

    def structured(self, arrays: Iterable[Any]) -> Any:
        """Arrange arrays in the order of `model.inputs` as the model is called."""
        values = dict(zip(self.graph.inputs, arrays, strict=True))
        return fill(self.graph.input_structure, values)

    def check_finite(self, arrays: Sequence[np.ndarray]) -> None:
        """Refuses NaN and infinity in arrays [B, ...] in the order of `model.inputs`.

        Raises:
            InputError: there is one; the input is named.
        """
        for name, array in zip(self.names.values(), arrays, strict=True):
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise InputError(
                    f"Numbers must be finite. Received: input {name!r} with NaN or "
                    "infinity. Leave those examples out, or repair them."
                )

    def _array(self, index: int, value: Any) -> np.ndarray:
        array = np.asarray(value)
        if self.graph.dtypes[index] != "string":
            array = array.astype(self.graph.dtypes[index], copy=False)
        wanted = self.shapes[index]
        if array.ndim == len(wanted) - 1 and wanted[-1] == 1:  # as Keras does
            array = array[..., None]
        elif array.ndim == len(wanted) + 1 and array.shape[-1] == 1:
            array = array[..., 0]
        if not _fits(array.shape, wanted):
            raise InputError(
                f"Input {self.names[index]!r} must have the shape "
                f"{('images', *wanted[1:])}. Received: shape={array.shape}. The "
                f"model's inputs are, in this order, {self._listed(self.shapes)}."
                f"{_misfit_hint(array.shape, wanted)}"
            )
        return array

    def _check_order(self, given: Any) -> None:
        """Refuses a list for a dict of inputs whose order is ambiguous.

        Keras sorts the keys of a dict; if the model was built with another order, and a
        list would fit both, it is not clear which array is meant. (Keras refuses every
        list there.)
        """
        structure = self.graph.input_structure
        if not isinstance(structure, dict) or not isinstance(given, (list, tuple)):
            return
        written = [ref.index for ref in leaves_of([*structure.values()])]
        values = [np.shape(value) for value in leaves_of(given)]
        if written == self.graph.inputs or len(values) != len(written):
            return
        if all(_fits(v, self.shapes[i]) for v, i in zip(values, written, strict=True)):
            raise InputError(
                "The inputs of a model built with a dict whose keys are not sorted "
                "must be given by name, unless only one order of them fits. "
                f"Received: {type(given).__name__} of {len(given)}. Pass a dict with "
                f"{', '.join(repr(self.names[i]) for i in written)}."
            )

    def _listed(self, shapes: Mapping[int, tuple]) -> str:
        return ", ".join(
            f"{self.names[i]!r} {('images', *shapes[i][1:])}" for i in self.names
        )


def batches_of(
    inputs: ModelInputs,
    data: Any,
    labels: Any = None,
    batch_size: int = BATCH_SIZE,
    largest: int | None = None,
) -> Iterator[Batch]:
    """Yields batches (arrays in the order of `model.inputs`, labels or None) of data.

    Empty batches are left out. For a model with a fixed batch size all batches have
    that size, and the rest is dropped. From a data set that may be endless the first
    16,384 images are taken, with a warning.

    Args:
        inputs: the inputs of the model.
        data: see the module's docstring.
        labels: one label per image, if `data` are arrays; for several outputs a list,
            tuple or dict of such arrays.
        batch_size: batch size for arrays.
        largest: larger batches of a data set are cut into pieces of this size; None:
            they are not cut.

    Raises:
        InputError: names, shapes, or numbers of images or labels do not fit.
    """
    outputs, exactly = len(inputs.graph.outputs), inputs.batch_size
    if is_arrays(data, inputs, labels):
        pairs: Iterable = [(inputs.read(data), labels)]
        size: int | None = batch_size
    else:
        _check_no_labels(labels, data)
        pairs, size = _pairs(inputs, data), largest
    for arrays, own_labels in pairs:
        read = labels_of(own_labels, outputs)
        _check_labels(read, len(arrays[0]))
        yield from _cut((arrays, read), exactly or size, exactly is not None)


def input_batches(
    inputs: ModelInputs, data: Any, batches: int | None = None
) -> Iterator[list[np.ndarray]]:
    """As `batches_of`, but the inputs only; labels in the data are ignored.

    Args:
        inputs: the inputs of the model.
        data: see the module's docstring.
        batches: how many to use; None: all.

    Yields:
        One array [B, ...] for each input of the model, in its order.
    """
    exactly = inputs.batch_size
    pairs: Iterable
    if is_arrays(data, inputs):
        cut = _cut(
            (inputs.read(data), None), exactly or BATCH_SIZE, exactly is not None
        )
        pairs = islice(cut, batches)
    else:
        pairs = _pairs(inputs, data, batches)
    for arrays, _ in pairs:
        for piece, _ in _cut((arrays, None), exactly, exactly is not None):
            yield piece


def _pairs(
    inputs: ModelInputs, data: Any, batches: int | None = None
) -> Iterator[Batch]:
    """The batches of a data set; of one that may be endless, only the first images."""
    if isinstance(data, (str, bytes)) or not isinstance(data, Iterable):
        raise InputError(
            "Data must be arrays or batches. "
            f"Received: {type(data).__name__}. Pass an array, a dict of arrays, a "
            "tf.data.Dataset, a keras.utils.PyDataset or a list of batches."
        )
    images, open_end = 0, batches is None and not _has_end(data)
    for batch in islice(data, batches):
        given, labels = _unpacked(batch, len(inputs.names))
        arrays = inputs.read(given)
        images += len(arrays[0])
        yield arrays, labels
        if open_end and images >= MOST_IMAGES:
            warnings.warn(
                f"Only the first {images} images are used of a data set whose end is "
                "not known. Pass one that ends, e.g. dataset.take(100).",
                stacklevel=2,
            )
            return


def is_arrays(data: Any, inputs: ModelInputs, labels: Any = None) -> bool:
    """Whether data are arrays of all images, not an iterable of batches."""
    if isinstance(data, Mapping) or hasattr(data, "shape"):
        return True
    if not isinstance(data, (list, tuple)) or len(data) != len(inputs.names):
        return False
    # A list of one array may be that array, or one batch. Without labels both mean the
    # same, and it is read as a batch.
    alone = len(inputs.names) == 1 and labels is None
    return not alone and all(hasattr(value, "shape") for value in data)


def _unpacked(batch: Any, count: int) -> tuple[Any, Any]:
    """Splits a batch for a model of `count` inputs into its inputs and labels."""
    if not isinstance(batch, (list, tuple)):
        return batch, None
    bare = not any(isinstance(part, (list, tuple, Mapping)) for part in batch)
    if count > 1 and bare and len(batch) == count:
        return batch, None
    if not 1 <= len(batch) <= 3:
        raise InputError(
            "A batch must be the inputs, (inputs, labels) or (inputs, labels, sample "
            f"weights). Received: {type(batch).__name__} of {len(batch)}. Group "
            "several inputs in a dict or a tuple of their own."
        )
    return batch[0], batch[1] if len(batch) > 1 else None


def labels_of(given: Any, outputs: int) -> Any:
    """Converts labels to arrays and keeps their structure; a single array is unpacked.

    Args:
        given: an array; or a list, tuple or dict with one array per output; None: no
            labels.
        outputs: number of outputs of the model.
    """
    if given is None:
        return None
    parts: Any = given
    if isinstance(given, Mapping):
        parts = {key: labels_of(value, 1) for key, value in given.items()}
    elif _is_listed(given) and len(given) == outputs:
        parts = type(given)(labels_of(value, 1) for value in given)
    else:
        return np.asarray(given)
    leaves = keras.tree.flatten(parts)
    return leaves[0] if len(leaves) == outputs == 1 else parts


def _is_listed(labels: Any) -> bool:
    """Whether labels are a list of arrays, not one list of numbers or of rows."""
    if not isinstance(labels, (list, tuple)):
        return False
    return all(v is None or len(getattr(v, "shape", ())) > 0 for v in labels)


def _check_no_labels(labels: Any, data: Any) -> None:
    if labels is not None:
        raise InputError(
            "labels go with arrays; a data set yields its own. Received: labels and "
            f"{type(data).__name__}. Let the data set yield (inputs, labels)."
        )


def _check_labels(labels: Any, images: int) -> None:
    for part in keras.tree.flatten(labels):
        if part is not None and np.shape(part)[:1] != (images,):
            raise InputError(
                "There must be one label an image. "
                f"Received: {len(np.atleast_1d(part))} labels, {images} images. Pass "
                "those of the images."
            )


def _cut(batch: Batch, size: int | None, exactly: bool) -> Iterator[Batch]:
    """Cuts a batch into pieces of `size` images; `exactly`: drop a smaller last one."""
    images = len(batch[0][0])
    size = size or images
    if images and not exactly and size >= images:
        yield batch
        return
    last = images - size if exactly else images - 1
    for start in range(0, last + 1, max(size, 1)):
        yield _rows(batch, slice(start, start + size))


def _rows(batch: Batch, part: slice) -> Batch:
    def rows(values: Any) -> Any:
        return None if values is None else values[part]

    return [rows(a) for a in batch[0]], keras.tree.map_structure(rows, batch[1])


def _has_end(data: Any) -> bool:
    """Whether a data set is known to end."""
    if isinstance(data, keras.utils.PyDataset):
        with contextlib.suppress(NotImplementedError):
            return data.num_batches is not None
        return False
    try:
        return len(data) >= 0
    except TypeError:  # generators, and tf.data sets that repeat or whose end is open
        return False


def _misfit_hint(shape: tuple, wanted: tuple) -> str:
    """What a user may have meant by an array that fits no batch of images."""
    if _fits((0, *shape), wanted):
        return " For single images, write dataset.batch(64) or images[None]."
    if len(shape) < 2:
        return " Pass images with labels as the tuple (images, labels)."
    return ""


def _fits(shape: tuple, wanted: tuple) -> bool:
    """Whether a shape fits that of an input, apart from the number of images."""
    return len(shape) == len(wanted) and all(
        b in (None, a) for a, b in zip(shape[1:], wanted[1:], strict=True)
    )
