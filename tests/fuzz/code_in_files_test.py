"""Files that hold code: none of it runs."""

import base64
import io
import marshal
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from gmpq_tf.models import ModelFileError, load_model
from tests.fuzz.limits import limited
from tests.fuzz.model_files import members, saved, with_config, zipped
from tests.fuzz.readers import BACKUP, READERS


@pytest.fixture
def marker(tmp_path):
    """A file that code in a hostile file would make."""
    path = tmp_path / "code_was_run"
    yield path
    assert not path.exists()


@pytest.fixture
def evil_module(tmp_path, marker, monkeypatch):
    """A module in the path whose import alone leaves the marker."""
    text = f"open({str(marker)!r}, 'w').close()\nclass Layer: pass\n"
    (tmp_path / "evil_layers.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield "evil_layers"
    assert "evil_layers" not in sys.modules


def lambda_of(marker):
    code = compile(f"open({str(marker)!r}, 'w').close()", "hostile", "exec")
    text = base64.b64encode(marshal.dumps(code)).decode()
    return {"class_name": "__lambda__", "config": {"value": [text, None, None]}}


def test_the_code_would_leave_its_mark(tmp_path):
    text = lambda_of(tmp_path / "code")["config"]["value"][0]
    exec(marshal.loads(base64.b64decode(text)))
    pickle.loads(pickle.dumps(Opens(tmp_path / "pickle"))).close()
    assert {path.name for path in tmp_path.iterdir()} == {"code", "pickle"}


def calling(module, class_name, registered=None, **config):
    return {
        "module": module,
        "class_name": class_name,
        "config": config,
        "registered_name": registered,
    }


def objects(marker, evil):
    """Name -> what a configuration may say instead of a layer."""
    touch, url = ["touch", str(marker)], Path(__file__).as_uri()
    command = f"touch {marker}"
    function = {"function": lambda_of(marker)["config"]["value"]} | {
        "function_type": "lambda",
        "name": "x",
    }
    fetch = {"fname": str(marker), "origin": url}
    return {
        "Lambda": calling("keras.layers", "Lambda", **function),
        "Lambda by its package": calling("keras", "layers>Lambda", **function),
        "subprocess": calling("subprocess", "Popen", args=touch),
        "registered": calling("subprocess", "Popen", "Popen", args=touch),
        "system": calling("os", "system", command=command),
        "eval": calling("builtins", "eval", source=f"open({str(marker)!r}, 'w')"),
        "get_file": calling("keras.utils", "get_file", **fetch),
        "inside Keras": calling("keras.src.utils.file_utils", "get_file", **fetch),
        "a module": calling(evil, "Layer", name="x"),
    }


OBJECTS = list(objects(Path("x"), "x"))
FUNCTIONS = ["lambda", "os", "subprocess", "builtins", "module"]


def functions(marker, evil):
    """Name -> what a configuration may say instead of an activation."""
    named = {"os": "system", "subprocess": "getoutput", "builtins": "exec"}
    calls = {m: calling(m, "function", name) for m, name in named.items()}
    for module, call in calls.items():
        call["config"] = named[module]
    calls["module"] = calling(evil, "function", "Layer") | {"config": "Layer"}
    return {"lambda": lambda_of(marker), **calls}


def refuses_model(path, content):
    path.write_bytes(content)
    with limited(path.name), pytest.raises(ModelFileError, match="Received"):
        load_model(path)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("name", OBJECTS)
def test_a_layer_that_is_code(suffix, name, tmp_path, marker, evil_module):
    hostile = objects(marker, evil_module)[name]

    def change(layers):
        layers[2] = {**hostile, "name": layers[2]["config"]["name"]} | {
            "inbound_nodes": layers[2]["inbound_nodes"]
        }

    refuses_model(tmp_path / f"m{suffix}", with_config(suffix, change))


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_activation_that_is_code(suffix, name, tmp_path, marker, evil_module):
    hostile = functions(marker, evil_module)[name]
    content = with_config(
        suffix, lambda layers: layers[1]["config"].update(activation=hostile)
    )
    refuses_model(tmp_path / f"m{suffix}", content)


class Opens:
    """Unpickled, it opens a file to write."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    "name", ["attribution", "backup", "weights .npz", "model .keras"]
)
def test_a_pickled_array_is_not_unpickled(name, tmp_path, marker):
    reader, buffer = (READERS | {"backup": BACKUP})[name], io.BytesIO()
    names = ["images", "labels", "teacher", "x"]
    array = np.array([Opens(marker)], object)
    np.savez(buffer, **dict.fromkeys(names, array))
    content = buffer.getvalue()
    if name == "model .keras":
        kept = {k: v for k, v in members(saved(".keras")).items() if "h5" not in k}
        content = zipped(kept | {"model.weights.npz": content})
    (tmp_path / reader.file).write_bytes(content)
    with pytest.raises(reader.errors, match="Received"):
        reader.read(tmp_path)
