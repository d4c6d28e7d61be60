"""A detector that is killed, or trained on two replicas, is the same detector."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from gmpq_tf.data import DataError
from gmpq_tf.files import read_jsonl
from gmpq_tf.models import load_model
from tests.data.detection_sets import SET, voc_kit

pytestmark = pytest.mark.slow
SECONDS = 300


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Sixteen training images: those of the small set four times."""
    content = {f"{n}{k}": SET[n] for k in range(4) for n in "abde"}
    lists = {"train": [n for n in content if n != "e3"], "test": ["e3"]}
    content["x0"] = SET["a"]
    lists["train"].append("x0")
    return voc_kit(tmp_path_factory.mktemp("voc"), lists, content)


def start(stage, data, workdir, *flags):
    command = [sys.executable, "-m", f"gmpq_tf.train.{stage}", f"--workdir={workdir}"]
    command += [f"--dataset={data}", "--image_size=32", "--batch_size=8"]
    command += ["--augment=flip", "--validation_size=0", "--progress=none", *flags]
    # Adam would make steps of the noise that biases before a normalization get.
    command += ["--optimizer=sgd", "--learning_rate=0.01", "--schedule=constant"]
    return subprocess.Popen(
        command,
        env=dict(os.environ, TF_NUM_INTRAOP_THREADS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process):
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, errors.decode()[-2000:]


def weights(workdir, stage):
    return load_model(workdir / stage / "model.keras").get_weights()


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    flags = ("--model=ssd_resnet8", "--epochs=2", "--threads=1")
    finish(start("pretrain", data, folder, *flags))
    return folder


def test_two_replicas_train_a_detector_as_one_device(data, alone, tmp_path):
    """Losses are divided by the objects of the whole batch, wherever they lie."""
    flags = ("--model=ssd_resnet8", "--epochs=2")
    mirrored = ("--distribution=mirrored", "--replicas=2")
    finish(start("pretrain", data, tmp_path, *flags, *mirrored))
    one, two = (read_jsonl(w / "pretrain/metrics.jsonl") for w in (alone, tmp_path))
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-3)
    for a, b in zip(
        weights(alone, "pretrain"), weights(tmp_path, "pretrain"), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=0.02, atol=2e-3)


def test_a_detector_that_was_killed_goes_on_bit_for_bit(data, alone, tmp_path):
    model = f"--model={alone / 'pretrain/model.keras'}"
    flags = (model, "--policy=uniform:4,4", "--epochs=3", "--threads=1")
    flags += ("--snap_tolerance=1", "--calibration_images=8", "--statistics_images=16")
    finish(start("finetune", data, tmp_path / "whole", *flags))
    process = start("finetune", data, tmp_path / "killed", *flags)
    backup = tmp_path / "killed/finetune/backup/state.npz"
    until = time.monotonic() + SECONDS
    while not backup.exists():
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed/finetune/done.json").exists()
    finish(start("finetune", data, tmp_path / "killed", *flags))
    for a, b in zip(
        weights(tmp_path / "whole", "finetune"),
        weights(tmp_path / "killed", "finetune"),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_a_damaged_detector_file_is_one_documented_error(alone, tmp_path):
    content = (alone / "pretrain/model.keras").read_bytes()
    random = np.random.default_rng(0)
    path = tmp_path / "model.keras"
    for share in (0.1, 0.5, 0.9, 0.999):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(ValueError, match=r"model\.keras"):
            load_model(path)
    for _ in range(8):
        damaged = bytearray(content)
        for place in random.integers(0, len(content), 200):
            damaged[place] ^= 0xFF
        path.write_bytes(bytes(damaged))
        with pytest.raises((ValueError, DataError)):
            load_model(path)
