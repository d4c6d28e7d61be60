"""Files of tensors and folders of masks: what is read, and what is refused."""

import zipfile

import numpy as np
import pytest
from PIL import Image

from gmpq_tf.data import DataConfig, DataError, load_dataset
from gmpq_tf.data.datasets import find_spec
from gmpq_tf.data.tensor_files import read_tensors

X, Y = np.ones((6, 3), "float32"), np.arange(6)


def saved(path, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return path


def load(path, **options):
    return load_dataset(DataConfig(str(path), batch_size=2, **options))


def test_files_are_joined_and_numbers_read_as_they_are(tmp_path):
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (10, 3), "uint8")
    saved(tmp_path / "a.npz", inputs=x[:6], targets=x[:6, :1] / 3)
    saved(tmp_path / "b.npz", inputs=x[6:], targets=x[6:, :1] / 3)
    dataset = load(tmp_path)
    assert find_spec(str(tmp_path)).holds == "tensors"
    assert dataset.config.scaling == "as_stored" and dataset.input_shape == (3,)
    parts = [dataset.splits[name] for name in ("train", "validation", "test")]
    rows = np.concatenate([part.images for part in parts])
    assert sorted(map(tuple, rows)) == sorted(map(tuple, x.astype("float32")))
    for inputs, targets in dataset.test():
        np.testing.assert_allclose(targets, inputs[:, :1] / 3, rtol=1e-6)
    again = load(tmp_path)
    assert again.identity("train") == dataset.identity("train") != ""


def test_splits_in_folders_and_one_file(tmp_path):
    for number, name in enumerate(("train", "val", "test")):
        saved(tmp_path / name / "a.npz", inputs=X + number, targets=Y)
    dataset = load(tmp_path)
    assert dataset.sizes == {"train": 6, "validation": 6, "test": 6}
    assert float(dataset.splits["validation"].images[0, 0]) == 2
    assert load(tmp_path / "train" / "a.npz").sizes["test"] == 1


HOSTILE = {
    "no_targets": ({"inputs": X}, "the array 'targets'"),
    "no_inputs": ({"targets": Y}, "the array 'inputs'"),
    "typo": ({"inputs": X, "target": Y}, "Did you mean 'targets'"),
    "nan": ({"inputs": X * np.nan, "targets": Y}, "'inputs' with a NaN.*example 0"),
    "infinite": ({"inputs": X, "targets": Y * np.inf}, "'targets' with a NaN"),
    "beyond_float32": ({"inputs": X * 1e300, "targets": Y}, "finite in float32"),
    "text": ({"inputs": X, "targets": Y.astype("U3")}, "of type <U3"),
    "complex": ({"inputs": X * 1j, "targets": Y}, "of type complex64"),
    "dates": ({"inputs": X, "targets": Y.astype("M8[D]")}, "plain numbers"),
    "fewer": ({"inputs": X, "targets": Y[:5]}, "'targets' of 5 for 6 inputs"),
    "scalar": ({"inputs": X, "targets": np.array(1.0)}, r"of shape \(\)"),
    "flat": ({"inputs": Y, "targets": Y}, r"'inputs' of shape \(6,\)"),
    "empty": ({"inputs": X[:0], "targets": Y[:0]}, r"of shape \(0, 3\)"),
    "both": ({"inputs": X, "targets": Y, "targets_a": Y}, "Leave one out"),
    "objects": ({"inputs": X, "targets": np.array([{}] * 6)}, "Python objects"),
}


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_by_name(tmp_path, name):
    arrays, text = HOSTILE[name]
    saved(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=text) as error:
        load(tmp_path)
    assert str(tmp_path / "a.npz") in str(error.value)


def test_damaged_files_are_refused(tmp_path):
    path = saved(tmp_path / "a.npz", inputs=X, targets=Y)
    content = path.read_bytes()
    for number in range(0, len(content), 37):
        path.write_bytes(content[:number])
        with pytest.raises(DataError, match=r"a\.npz"):
            load(tmp_path)
    path.write_bytes(b"not a zip archive")
    with pytest.raises(DataError, match=r"whole \.npz file"):
        load(tmp_path)
    with zipfile.ZipFile(path, "w") as archive:  # says it has 8 TB
        header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (10**12, 1), }"
        header = header.replace(b"10**12", b"1000000000000").ljust(117) + b"\n"
        head = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
        archive.writestr("inputs.npy", head + bytes(64))
    with pytest.raises(DataError, match=r"1000000000000, 1\) in"):
        read_tensors(path)


def test_files_that_do_not_go_together_are_refused(tmp_path):
    saved(tmp_path / "a.npz", inputs=X, targets=Y)
    saved(tmp_path / "b.npz", inputs=np.ones((2, 4)), targets=Y[:2])
    with pytest.raises(DataError, match=r"a\.npz with.*b\.npz with"):
        load(tmp_path)
    (tmp_path / "b.npz").unlink()
    for options, text in (
        ({"scaling": "-1..1"}, "as they are stored"),
        ({"image_size": 8}, "have their shape"),
        ({"labels": "none"}, "no labels but targets"),
        ({"augment": "flip"}, "'none' for images with tensors"),
    ):
        with pytest.raises(DataError, match=text):
            load(tmp_path, **options)
    with pytest.raises(ValueError, match=r"loss='mze'.*Did you mean 'mse'"):
        DataConfig(loss="mze")
    with pytest.raises(DataError, match="loss='mse' with dataset='digits'"):
        load("digits", loss="mse")
    with pytest.raises(DataError, match="scaling='as_stored'"):
        load("digits", scaling="as_stored")


def mask_folder(root, mask, image=None):
    for folder, pixels in (("images", image), ("masks", mask)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((8, 8, 3), "uint8") if pixels is None else pixels
        Image.fromarray(pixels).save(root / folder / "a.png")
    return root


def test_masks_that_do_not_fit_are_refused(tmp_path):
    grey = np.zeros((8, 8), "uint8")
    cases = {
        "colours": (
            mask_folder(tmp_path / "a", grey[..., None] * np.ones(3, "uint8")),
        ),
        "size": (mask_folder(tmp_path / "b", grey[:4]),),
    }
    with pytest.raises(DataError, match="mode 'RGB', which is colours"):
        load(cases["colours"][0], image_size=8)
    with pytest.raises(DataError, match="the size of its image"):
        load(cases["size"][0], image_size=8)
    root = mask_folder(tmp_path / "c", grey)
    assert load(root, image_size=8, validation_size=0).holds == "tensors"
    (root / "masks" / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"masks/a\.png"):
        load(root, image_size=8)
    (root / "masks" / "a.png").rename(root / "masks" / "b.png")
    with pytest.raises(
        DataError, match=r"Every image needs a mask of its name.*a\.png"
    ):
        load(root, image_size=8)
