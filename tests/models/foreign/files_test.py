"""Weight files, whole and damaged."""

import h5py
import keras
import numpy as np
import pytest

from gmpq_tf.models.foreign.files import WeightsError, read_weight_file


def network():
    inputs = keras.Input((6, 6, 2))
    x = keras.layers.Conv2D(3, 3, use_bias=False, name="first")(inputs)
    x = keras.layers.BatchNormalization(name="second")(x)
    x = keras.layers.DepthwiseConv2D(3, name="third")(x)
    x = keras.layers.Dropout(0.5, name="noise")(x)
    x = keras.layers.Flatten(name="flat")(x)
    model = keras.Model(inputs, keras.layers.Dense(2, name="last")(x), name="net")
    model.set_weights([np.random.random(w.shape) for w in model.weights])
    return model


NAMES = [
    "first/kernel",
    "second/gamma",
    "second/beta",
    "second/moving_mean",
    "second/moving_variance",
    "third/kernel",
    "third/bias",
    "last/kernel",
    "last/bias",
]
STATE = {
    "conv.weight": np.arange(6, dtype=np.float16).reshape(1, 6),
    "bn.running_var": np.ones(3, np.float32),
    "bn.num_batches_tracked": np.int64(5),
}
WRITERS = {
    ".keras": lambda path: network().save(path),
    ".h5": lambda path: network().save(path),
    ".weights.h5": lambda path: network().save_weights(path),
    ".npz": lambda path: np.savez(path, **STATE),
    ".safetensors": lambda path: save_safetensors(path, STATE),
}


def save_safetensors(path, state):
    from safetensors.numpy import save_file

    save_file({name: np.asarray(value) for name, value in state.items()}, path)


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("suffix", [".keras", ".h5", ".weights.h5"])
def test_keras_files_give_every_tensor_by_name(suffix, trained, tmp_path):
    model = network()
    if trained:  # the state of an optimizer or of a dropout is none of the weights
        model.compile("adam", "mse", metrics=["mae"])
        model.fit(np.ones((2, 6, 6, 2)), np.ones((2, 2)), verbose=0)
    path = tmp_path / f"model{suffix}"
    model.save_weights(path) if suffix == ".weights.h5" else model.save(path)
    file = read_weight_file(path)
    assert (file.library, file.model_name) == ("keras", "net")
    assert sorted(file.tensors) == sorted(NAMES)
    assert {"noise", "flat"} <= set(file.layers)
    assert not file.ordered
    for name, weight in zip(NAMES, model.get_weights(), strict=True):
        np.testing.assert_array_equal(file.tensors[name], weight)


def test_more_than_ten_layers_of_a_kind(tmp_path):
    x = inputs = keras.Input((2,))
    for index in range(12):
        x = keras.layers.Dense(2, name=f"layer{index}")(x)
    model = keras.Model(inputs, x)
    model.set_weights([np.full(w.shape, i) for i, w in enumerate(model.weights)])
    model.save_weights(tmp_path / "many.weights.h5")
    tensors = read_weight_file(tmp_path / "many.weights.h5").tensors
    assert list(tensors)[-1] == "layer11/bias"
    for index in range(12):
        assert tensors[f"layer{index}/kernel"][0, 0] == 2 * index


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_state_dicts_lose_only_what_pytorch_counts(suffix, tmp_path):
    path = tmp_path / f"state{suffix}"
    WRITERS[suffix](path)
    file = read_weight_file(str(path))
    assert file.library == "torchvision"
    assert sorted(file.tensors) == ["bn.running_var", "conv.weight"]
    weight = file.tensors["conv.weight"]
    assert weight.dtype == np.float32
    np.testing.assert_array_equal(weight, STATE["conv.weight"])


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("suffix", WRITERS)
def test_truncated_file(suffix, share, tmp_path):
    path = tmp_path / f"cut{suffix}"
    WRITERS[suffix](path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(WeightsError, match=rf"whole.*cut.*{suffix}.*save it again"):
        read_weight_file(path)


def test_missing_file_and_other_kinds(tmp_path):
    with pytest.raises(WeightsError, match=r"existing file.*nowhere\.npz"):
        read_weight_file(tmp_path / "nowhere.npz")
    (tmp_path / "model.pth").write_bytes(b"0")
    with pytest.raises(WeightsError, match=r"\.safetensors.*model\.pth"):
        read_weight_file(tmp_path / "model.pth")
    with pytest.raises(WeightsError, match="Did you mean 'imagenet'"):
        read_weight_file("imagnet")


def test_pickled_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "objects.npz", weight=np.array([{}], dtype=object))
    with pytest.raises(WeightsError, match="allow_pickle"):
        read_weight_file(tmp_path / "objects.npz")


@pytest.mark.parametrize(
    ("name", "value"), [("fc.weight", np.nan), ("a.running_var", -1.0)]
)
def test_values_that_no_network_has(name, value, tmp_path):
    np.savez(tmp_path / "bad.npz", **{"ok.weight": np.ones(2), name: np.full(2, value)})
    with pytest.raises(WeightsError, match=f"finite.*'{name}'"):
        read_weight_file(tmp_path / "bad.npz")


def test_data_in_another_file_is_refused(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(8))
    with h5py.File(tmp_path / "x.weights.h5", "w") as file:
        group = file.create_group("layers/dense/vars")
        external = [(str(tmp_path / "secret"), 0, 8)]
        group.create_dataset("0", (2,), "float32", external=external)
    with pytest.raises(WeightsError, match="lies in another file"):
        read_weight_file(tmp_path / "x.weights.h5")


def test_safetensors_needs_its_package(tmp_path, monkeypatch):
    WRITERS[".safetensors"](tmp_path / "state.safetensors")
    monkeypatch.setitem(__import__("sys").modules, "safetensors.numpy", None)
    with pytest.raises(WeightsError, match="pip install"):
        read_weight_file(tmp_path / "state.safetensors")
