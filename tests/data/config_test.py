"""What a data configuration refuses."""

import dataclasses

import pytest

from gmpq_tf.data import DataConfig, DataError


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 2.5}, "batch_size=2.5"),
        ({"seed": -1}, "seed=-1"),
        ({"split_seed": True}, "split_seed=True"),
        ({"image_size": 0}, "image_size=0"),
        ({"validation_size": -1}, "validation_size=-1"),
        ({"validation_size": 10.5}, "validation_size=10.5"),
        ({"augment": "flip_corp"}, "Did you mean 'flip_crop'"),
        ({"scaling": "0...1"}, "Did you mean '0..1'"),
        ({"mean": (0.5,)}, "only with"),
    ],
)
def test_bad_option_is_refused(options, message):
    with pytest.raises(DataError, match=message):
        DataConfig(**options)


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DataConfig().seed = 1


def test_download_follows_data_dir_unless_said():
    assert DataConfig().may_download
    assert not DataConfig(data_dir="here").may_download
    assert DataConfig(data_dir="here", download=True).may_download
