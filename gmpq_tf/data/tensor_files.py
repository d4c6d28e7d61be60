"""Data sets of tensors: `.npz` files with a model's inputs and target outputs."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gmpq_tf.data.config import DataConfig
from gmpq_tf.data.errors import DataError
from gmpq_tf.data.folder import expanded
from gmpq_tf.data.scaling import AS_STORED
from gmpq_tf.data.spec import TEST_FRACTION, DatasetSpec, Raw
from gmpq_tf.data.splits import TEST_SEED, ArraySplit
from gmpq_tf.spelling import suggest
from gmpq_tf.task.targets import ALONE, Target

INPUTS, TARGETS = "inputs", "targets"
SUFFIX = ".npz"
MAX_BYTES = 4 * 10**9  # of a data set unpacked, by the headers of its files
_SPLITS = {
    "train": ("train",),
    "validation": ("validation", "val", "valid"),
    "test": ("test",),
}
_NUMBERS = "biuf"  # NumPy's kinds: bool, signed, unsigned, float


def load_tensors(config: DataConfig, spec: DatasetSpec) -> Raw:
    """Loads one `.npz` file, a folder of them, or folders train, validation and test.

    Each file holds `inputs` [examples, ...] and `targets` [examples, ...], or
    `targets_NAME` for each output of a model with several; all first axes agree. With
    `targets="inputs"` files need no targets. Numbers are read as they are stored.
    Without a test split, random 20 % become it.

    Raises:
        DataError: A file cannot be used; the message names it.
    """
    named = config.data_dir if config.dataset == "tensors" else config.dataset
    root = expanded(str(named))
    parts = _parts(root)
    _check_size([path for paths in parts.values() for path in paths])
    own = config.targets == INPUTS
    read = {name: _joined(paths, own) for name, paths in parts.items()}
    shapes = {name: _shapes(arrays) for name, arrays in read.items()}
    for name, found in shapes.items():
        if found != shapes["train"]:
            raise DataError(
                "All splits must hold the same arrays. Received: "
                f"{root} with {shapes['train']} in train and {found} in {name}. Make "
                "them alike."
            )
    splits = {name: _split(arrays) for name, arrays in read.items()}
    if "test" not in splits:
        count = round(TEST_FRACTION * splits["train"].size)
        splits["train"], splits["test"] = splits["train"].hold_out(count, TEST_SEED)
    targets = {
        _output(key): target_of([arrays[key] for arrays in read.values()])
        for key in read["train"]
        if key != INPUTS
    }
    shape = read["train"][INPUTS].shape[1:]
    return Raw(dict(splits), shape, (), targets=targets, scaling=AS_STORED)


def is_tensors(path: Path) -> bool:
    """Whether a path is a file, or a folder, of arrays as `load_tensors` reads them."""
    if path.is_file():
        return path.suffix.lower() == SUFFIX
    places = [path, *(path / n for names in _SPLITS.values() for n in names)]
    return any(next(p.glob(f"[!.]*{SUFFIX}"), None) is not None for p in places)


def target_of(arrays: list[np.ndarray]) -> Target:
    """Describes the targets [examples, ...] of all splits: shape, type, range."""
    whole = arrays[0].dtype.kind in "iu"
    filled = [array for array in arrays if array.size]
    low = min((float(a.min()) for a in filled), default=None)
    high = max((float(a.max()) for a in filled), default=None)
    return Target(arrays[0].shape[1:], whole, low, high)


def _parts(root: Path) -> dict[str, list[Path]]:
    """Returns split -> its files; "train" is always present."""
    if root.is_file():
        return {"train": [root]}
    if not root.is_dir():
        raise DataError(
            "A data set of tensors needs a .npz file, or a folder of them, that "
            f"exists. Received: {root}. Give dataset='<path>'."
        )
    found = {
        split: next((root / n for n in names if (root / n).is_dir()), None)
        for split, names in _SPLITS.items()
    }
    if found["train"] is None:
        parts = {"train": sorted(root.glob(f"[!.]*{SUFFIX}"))}
    else:
        parts = {
            split: sorted(folder.glob(f"[!.]*{SUFFIX}"))
            for split, folder in found.items()
            if folder is not None
        }
    for split, paths in parts.items():
        if not paths:
            raise DataError(
                f"Every split needs {SUFFIX} files. Received: {found[split] or root} "
                "with none. Write such by np.savez(path, inputs=..., targets=...)."
            )
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
    return parts


def _check_size(paths: list[Path]) -> None:
    """Refuses files that would unpack to more bytes than `MAX_BYTES`."""
    total = 0
    for path in paths:
        try:
            with zipfile.ZipFile(path) as archive:
                total += sum(member.file_size for member in archive.infolist())
        except (OSError, zipfile.BadZipFile) as error:
            raise _unreadable(path, error) from error
    if total > MAX_BYTES:
        raise DataError(
            f"Tensors are kept in memory, {MAX_BYTES / 1e9:g} GB at most. "
            f"Received: {len(paths)} files of {total / 1e9:.1f} GB, {paths[0]} the "
            "first. Take fewer examples."
        )


def _joined(paths: list[Path], own: bool) -> dict[str, np.ndarray]:
    """Returns the arrays of some files, concatenated along the examples."""
    files = [read_tensors(path, own) for path in paths]
    first = _shapes(files[0])
    for path, arrays in zip(paths, files, strict=True):
        if _shapes(arrays) != first:
            raise DataError(
                "All files must hold the same arrays, but for the number of examples. "
                f"Received: {paths[0]} with {first}, {path} with {_shapes(arrays)}. "
                "Make them alike."
            )
    return {key: np.concatenate([a[key] for a in files]) for key in files[0]}


def read_tensors(path: Path, own: bool = False) -> dict[str, np.ndarray]:
    """Reads the inputs and targets of a file.

    Args:
        path: a `.npz` file.
        own: whether the inputs serve as targets, so that targets are not read.

    Returns:
        "inputs" float32 [examples, ...], and targets [examples, ...]: whole numbers as
        int64, others as float32.

    Raises:
        DataError: it is not such a file, or a model cannot be trained on its content.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {m.filename: m.file_size for m in archive.infolist()}
            for name, size in sizes.items():
                with archive.open(name) as member:
                    _check_header(member, size)
        with np.load(path, allow_pickle=False) as stored:
            keys = list(stored.files)
            _check_keys(path, keys, own)
            wanted = [INPUTS] if own else keys
            arrays = {key: np.asarray(stored[key]) for key in wanted}
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise many kinds of errors
        raise _unreadable(path, error) from error
    for key, array in arrays.items():
        _check_array(path, key, array, len(arrays[INPUTS]) if array.ndim else 0)
        whole = key != INPUTS and array.dtype.kind in "iu"
        arrays[key] = array.astype(np.int64 if whole else np.float32)
        if not np.isfinite(arrays[key]).all():
            raise DataError(
                f"Numbers must be finite in float32. Received: {path}, {key!r} with a "
                f"NaN or an infinity in example {_first_bad(arrays[key])}. Leave that "
                "example out, or mend it."
            )
    return arrays


def _check_header(member: object, size: int) -> None:
    """Refuses an array whose header claims more bytes than the file has."""
    version = np.lib.format.read_magic(member)  # type: ignore[arg-type]
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"an array of format {version}")
    shape, _, kind = read(member)  # type: ignore[arg-type]
    if kind.hasobject:
        raise ValueError("Python objects, which are not read")
    count = 1
    for side in shape:
        count *= side
    if count * kind.itemsize > size:
        raise ValueError(f"an array of {shape} in {size} bytes")


def _check_keys(path: Path, keys: list[str], own: bool) -> None:
    named = [key for key in keys if key.startswith(f"{TARGETS}_")]
    known = {INPUTS, TARGETS, *named}
    if unknown := sorted(set(keys) - known):
        raise DataError(
            f"Arrays must be {INPUTS!r} and {TARGETS!r} (or {TARGETS}_NAME of several "
            f"outputs). Received: {path} with {unknown[0]!r:.80}. "
            f"{suggest(unknown[0], [INPUTS, TARGETS])}"
        )
    missing = [INPUTS] if INPUTS not in keys else []
    missing += [TARGETS] if not (own or named or TARGETS in keys) else []
    if missing:
        raise DataError(
            f"A file must hold the array {missing[0]!r}. "
            f"Received: {path} with {', '.join(map(repr, keys)) or 'none'}. Write it, "
            "or give targets='inputs' where the model makes its input anew."
        )
    if named and TARGETS in keys:
        raise DataError(
            "Targets are for one output, or each for one by name. "
            f"Received: {path} with {TARGETS!r} and {named[0]!r}. Leave one out."
        )


def _check_array(path: Path, key: str, array: np.ndarray, count: int) -> None:
    if array.dtype.kind not in _NUMBERS:
        raise DataError(
            "Arrays must hold plain numbers. "
            f"Received: {path}, {key!r} of type {array.dtype}. Save them as float32."
        )
    if array.ndim < (2 if key == INPUTS else 1) or not array.size:
        raise DataError(
            "Arrays must have the examples as their first axis, and inputs another. "
            f"Received: {path}, {key!r} of shape {array.shape}. Save one row an "
            "example."
        )
    if len(array) != count:
        raise DataError(
            "There must be as many targets as inputs. "
            f"Received: {path}, {key!r} of {len(array)} for {count} inputs. Save them "
            "together."
        )


def _first_bad(array: np.ndarray) -> int:
    rows = np.isfinite(array.reshape(len(array), -1)).all(axis=1)
    return int(np.flatnonzero(~rows)[0])


def _shapes(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    return {
        key: f"{array.shape[1:]} {array.dtype}" for key, array in sorted(arrays.items())
    }


def _output(key: str) -> str:
    return ALONE if key == TARGETS else key.removeprefix(f"{TARGETS}_")


def _split(arrays: Mapping[str, np.ndarray]) -> ArraySplit:
    targets = {_output(k): v for k, v in arrays.items() if k != INPUTS}
    if not targets:  # the inputs serve as targets
        return ArraySplit(arrays[INPUTS], np.zeros(len(arrays[INPUTS]), np.int64))
    labels = targets.get(ALONE, targets)
    return ArraySplit(arrays[INPUTS], labels)


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"A file of tensors must be a whole {SUFFIX} file of plain arrays. "
        f"Received: {path} ({str(error)[:100]}). Write it again by np.savez."
    )
