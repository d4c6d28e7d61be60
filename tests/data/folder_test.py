"""Folders of images against what was written; what is wrong with them is named."""

import os
import shutil
import warnings

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from gmpq_tf.data import DataConfig, DataError, load_dataset
from gmpq_tf.data.folder import has_classes


def write_images(folder, count, value, side=8):
    folder.mkdir(parents=True)
    for index in range(count):
        pixels = np.full((side + index % 3, side, 3), value, np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")


@pytest.fixture
def image_folder(tmp_path):
    for value, name in enumerate(["ant", "bee", "cat"]):
        write_images(tmp_path / "images" / name, 10, 50 * value)
    return tmp_path / "images"


def folder_config(folder, **options):
    options = {"image_size": 8, "batch_size": 4, "augment": "none"} | options
    return DataConfig(str(folder), scaling="0..255", **options)


def values_and_labels(batches):
    return [
        (float(image.numpy().mean()), int(label))
        for images, labels in batches
        for image, label in zip(images, labels, strict=True)
    ]


@pytest.mark.parametrize("cache", [True, False])
def test_folder_without_splits(image_folder, cache):
    dataset = load_dataset(folder_config(image_folder, cache=cache))
    assert dataset.class_names == ("ant", "bee", "cat")
    assert dataset.sizes == {"train": 22, "validation": 2, "test": 6}
    pairs = values_and_labels(dataset.test())
    assert sorted(pairs) == sorted((50.0 * k, k) for k in range(3) for _ in range(2))
    assert all(value == 50.0 * k for value, k in values_and_labels(dataset.train(0, 1)))


def test_folder_given_by_data_dir(image_folder):
    config = DataConfig("folder", str(image_folder), image_size=8)
    assert load_dataset(config).num_classes == 3


@pytest.mark.parametrize("extra", [("val",), ("test",), ("validation", "test")])
def test_folder_with_splits(tmp_path, extra):
    for count, split in zip([5, 3, 2], ["train", *extra], strict=False):
        for value, name in enumerate(["ant", "bee"]):
            write_images(tmp_path / split / name, count, 100 * value)
    dataset = load_dataset(folder_config(tmp_path, validation_size=1))
    two = len(extra) == 2
    expected = (10, 6, 4) if two else (9, 1, 6)
    assert tuple(dataset.sizes.values()) == expected


def test_folder_of_one_class(tmp_path):
    write_images(tmp_path / "only", 3, 0)
    with pytest.raises(DataError, match=r"two classes at least.*only.*labels='none'"):
        load_dataset(folder_config(tmp_path))


def test_folder_with_unknown_class_in_test(image_folder, tmp_path):
    image_folder.rename(tmp_path / "train")
    write_images(tmp_path / "test" / "bees", 1, 0)
    with pytest.raises(DataError, match=r"bees.*Did you mean 'bee'"):
        load_dataset(folder_config(tmp_path))


def test_folder_needs_image_size(image_folder):
    with pytest.raises(DataError, match="image_size=None"):
        load_dataset(folder_config(image_folder, image_size=None))


def test_folder_that_is_missing(tmp_path):
    with pytest.raises(DataError, match="folder that exists"):
        load_dataset(DataConfig("folder", str(tmp_path / "nowhere"), image_size=8))


@pytest.mark.parametrize("content", ["empty", "text", "truncated"])
def test_corrupt_file_is_named(image_folder, content):
    path = image_folder / "bee" / "3.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    contents = {"empty": b"", "text": b"not an image"}
    path.write_bytes(contents.get(content, path.read_bytes()[:3000]))
    with pytest.raises(DataError, match=r"bee.3\.png"):
        load_dataset(folder_config(image_folder))


def test_folder_images_that_are_not_images_are_ignored(image_folder):
    (image_folder / "bee" / "notes.txt").write_text("about bees")
    assert sum(load_dataset(folder_config(image_folder)).sizes.values()) == 30


@pytest.mark.parametrize("kind", ["png", "jpg"])
@pytest.mark.parametrize("cache", [True, False])
def test_truncated_file_is_named_before_training(image_folder, photograph, kind, cache):
    """Without a cache nothing else would decode it before an epoch breaks off."""
    path = image_folder / "bee" / f"cut.{kind}"
    Image.fromarray(photograph(64, 64)).save(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=rf"bee.cut\.{kind}.*truncated"):
        load_dataset(folder_config(image_folder, cache=cache))


def damage_middle(path):
    """Leaves a PNG's beginning and end as they are: only decoding tells."""
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(noise).save(path)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [damage_middle, os.remove])
@pytest.mark.parametrize("batches", ["train", "calibration"])
def test_image_that_breaks_off_a_training_is_named(image_folder, harm, batches):
    if harm is damage_middle:
        harm(image_folder / "bee" / "3.png")
    dataset = load_dataset(folder_config(image_folder, cache=False, validation_size=0))
    if harm is os.remove:  # while it trains
        harm(dataset.splits["train"].paths[5])
    named = r"\.png.*" if harm is os.remove else r"bee.3\.png"
    with (
        pytest.raises(DataError, match=named),
        dataset.naming_damaged_images(),
    ):
        arguments = {"epochs": 3} if batches == "train" else {}
        for _ in getattr(dataset, batches)(**arguments):
            pass


def test_errors_that_no_image_made_stay_what_they_are(image_folder):
    dataset = load_dataset(folder_config(image_folder, cache=False))
    with (
        pytest.raises(tf.errors.InvalidArgumentError, match="of the model"),
        dataset.naming_damaged_images(),
    ):
        tf.debugging.assert_equal(1, 2, "of the model")


def test_jpeg_with_bytes_after_its_end_is_read(image_folder, photograph):
    path = image_folder / "bee" / "long.jpg"
    Image.fromarray(photograph(64, 64)).save(path)
    path.write_bytes(path.read_bytes() + b"some camera's notes")
    assert sum(load_dataset(folder_config(image_folder)).sizes.values()) == 31


def test_format_that_tensorflow_does_not_read_is_named(image_folder, photograph):
    path = image_folder / "bee" / "web.jpg"
    Image.fromarray(photograph(8, 8)).save(path, "TIFF")
    with pytest.raises(DataError, match=r"bee.web\.jpg"):
        load_dataset(folder_config(image_folder))


def test_class_without_images_is_named(image_folder):
    (image_folder / "dog").mkdir()
    with pytest.raises(DataError, match=r"training images.*dog"):
        load_dataset(folder_config(image_folder))


def test_random_crop_reads_other_parts_each_epoch(tmp_path, photograph):
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for index in range(5):
            pixels = photograph(40, 60, index)
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.jpg")
    config = folder_config(tmp_path, augment="random_resized_crop", validation_size=0)
    dataset = load_dataset(config)
    first, second, again = (
        [images for images, _ in dataset.train(epoch, 1).as_numpy_iterator()]
        for epoch in (0, 1, 0)
    )
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, again)


def link_to_itself(folder):
    (folder / "loop.png").symlink_to(folder / "loop.png")


def link_to_nothing(folder):
    (folder / "gone.png").symlink_to("nowhere.png")


def pipe(folder):
    os.mkfifo(folder / "pipe.png")


def folder_of_that_name(folder):
    (folder / "album.jpg").mkdir()


def name_that_is_no_text(folder):
    source = next(folder.glob("*.png"))
    shutil.copy(source, os.fsencode(folder) + b"/caf\xe9.png")


@pytest.mark.parametrize(
    "make",
    [link_to_itself, link_to_nothing, pipe, folder_of_that_name, name_that_is_no_text],
)
def test_what_only_looks_like_an_image_is_named(image_folder, make):
    make(image_folder / "bee")
    with pytest.raises(DataError, match=r"bee.*(png|jpg)"):
        load_dataset(folder_config(image_folder))


def test_links_to_folders_above_are_not_followed_for_ever(image_folder):
    (image_folder / "bee" / "up").symlink_to(image_folder)
    dataset = load_dataset(folder_config(image_folder))
    assert sum(dataset.sizes.values()) == 30


@pytest.mark.parametrize(
    "name", ["a b", "new\nline", "quote'\"", "*?[x]", "%s{0}", "é"]
)
def test_odd_names_are_read(image_folder, name):
    source = image_folder / "bee" / "0.png"
    shutil.copy(source, image_folder / "bee" / f"{name}.png")
    (image_folder / "cat").rename(image_folder / name)
    dataset = load_dataset(folder_config(image_folder, validation_size=0))
    assert sum(dataset.sizes.values()) == 31 and name in dataset.class_names
    assert len(values_and_labels(dataset.test())) == 6


def test_an_image_of_more_pixels_than_fit_in_memory_is_named(image_folder, monkeypatch):
    monkeypatch.setattr("gmpq_tf.data.folder.MAX_PIXELS", 71)
    with pytest.raises(DataError, match=r"at most 71 pixels.*ant.1\.png.*shrink"):
        load_dataset(folder_config(image_folder))


def test_hidden_files_are_no_images(image_folder):
    """Those of macOS are broken, those of Jupyter are copies."""
    for folder in (image_folder, image_folder / "bee"):
        write_images(folder / ".ipynb_checkpoints", 3, 10)
        (folder / "._0.png").write_bytes(b"\0\5\x16\7")
    assert has_classes(image_folder)
    for labels in (None, "none"):
        sizes = load_dataset(folder_config(image_folder, labels=labels)).sizes
        assert sum(sizes.values()) == 30


@pytest.mark.parametrize("name", ["~no_such_user/images", "x" * 1000])
def test_a_folder_that_cannot_be(name):
    with pytest.raises(DataError, match="folder that exists"):
        load_dataset(DataConfig("folder", name, image_size=8))


def written(folder, mode, suffix=".png", number=5, side=(12, 10)):
    """Two classes of image files of one of Pillow's modes."""
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(number):
            pixels = random.integers(0, 256, (*side, 3), np.uint8)
            path = folder / name / f"{index}{suffix}"
            Image.fromarray(pixels).convert(mode).save(path)
    return str(folder)


@pytest.mark.parametrize(
    ("modes", "channels"),
    [("L", 1), ("1", 1), ("LA", 1), ("RGB", 3), ("P", 3), ("L RGB", 3)],
)
def test_a_folder_is_grey_if_all_of_it_is(modes, channels, tmp_path):
    for index, mode in enumerate(modes.split()):
        written(tmp_path, mode, f"_{index}.png")
    data = load_dataset(DataConfig(str(tmp_path), image_size=8))
    assert data.input_shape == (8, 8, channels)
    assert data.config.channels is None


@pytest.mark.quick_rows(4)
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", [".png", ".bmp", ".gif"])
def test_images_are_read_as_the_model_reads_them(mode, channels, suffix, tmp_path):
    folder = written(tmp_path, mode, suffix)
    config = DataConfig(folder, scaling="0..255", validation_size=0)
    data = load_dataset(config, (12, 10, channels))
    assert data.input_shape == (12, 10, channels)
    assert data.config.image_size == (12, 10)
    grey_gif = suffix == ".gif" and mode == "L"  # read as a palette
    stored = 1 if mode == "L" and not grey_gif else 3
    assert data.config.channels in ((None,) if stored == channels else (channels,))
    images, labels = next(iter(data.test()))
    assert images.shape[1:] == (12, 10, channels) and sorted(labels) == [0, 1]
    if channels == 3 and mode == "L":
        np.testing.assert_array_equal(images[..., :2], images[..., 1:])


def test_grey_values_are_those_of_pillow(tmp_path):
    for suffix in (".png", ".bmp", ".gif"):
        written(tmp_path / suffix, "RGB", suffix)
        data = load_dataset(DataConfig(str(tmp_path / suffix)), (12, 10, 1))
        paths = data.splits["test"]
        found = next(iter(data.test()))[0].numpy()[..., 0] * 255
        assert found.shape[1:] == (12, 10) and paths.size
        wanted = {
            np.asarray(Image.open(path).convert("RGB").convert("L")).tobytes()
            for path in (tmp_path / suffix).rglob("*.*")
            if path.is_file()
        }
        for image in np.round(found).astype(np.uint8):
            assert image.tobytes() in wanted


@pytest.mark.parametrize("mode", ["CMYK", "RGB"])
def test_jpegs_of_any_colours_are_read_as_grey(mode, tmp_path):
    """Within what decoders of JPEG differ."""
    for name, value in (("dark", 40), ("light", 200)):
        (tmp_path / name).mkdir()
        image = Image.fromarray(np.full((16, 12, 3), value, "uint8")).convert(mode)
        for number in range(3):
            image.save(tmp_path / name / f"{number}.jpg", quality=98)
    data = load_dataset(folder_config(tmp_path, validation_size=0), (8, 8, 1))
    for images, labels in data.test():
        for image, label in zip(images, labels, strict=True):
            assert np.abs(image - (40, 200)[label]).max() < 4


def test_a_size_need_not_be_square(tmp_path):
    folder = written(tmp_path, "RGB", side=(40, 40))
    for augment in ("none", "flip_crop", "random_crop", "random_resized_crop"):
        config = DataConfig(folder, image_size=(16, 8), batch_size=4, augment=augment)
        data = load_dataset(config)
        assert data.input_shape == (16, 8, 3)
        assert next(iter(data.train(0, 1)))[0].shape == (4, 16, 8, 3)
    # The middle of the height's whole and half of the width, not squeezed.
    paths = data.splits["test"]
    image = next(iter(data.test()))[0].numpy()[0] * 255
    with_middle = [
        np.asarray(Image.open(path))[:, 10:30] for path in tmp_path.rglob("*.png")
    ]
    resized = [tf.image.resize(m, (16, 8), antialias=True) for m in with_middle]
    assert paths.size and min(np.abs(r - image).max() for r in resized) <= 0.6


def test_other_image_files_are_named(tmp_path):
    folder = written(tmp_path, "RGB")
    for name in ("x.webp", "y.webp", "z.tiff", "notes.txt", ".DS_Store", "noend"):
        (tmp_path / "a" / name).write_bytes(b"0")
    (tmp_path / "b" / "UPPER.JPEG").write_bytes(
        tf.io.encode_jpeg(np.zeros((9, 9, 3), np.uint8)).numpy()
    )
    message = r"2 of \.webp, 1 of \.tiff; 11 images are read|1 of no suffix"
    with pytest.warns(UserWarning, match=message) as caught:
        load_dataset(DataConfig(folder, image_size=8))
    text = str(caught[0].message)
    assert "2 of .webp" in text and "1 of .tiff" in text and "1 of no suffix" in text
    assert "txt" not in text and "DS_Store" not in text


def test_other_image_files_are_named_without_labels_too(tmp_path):
    folder = tmp_path / "flat"
    write_images(folder, 3, 10)
    for name in ("x.webp", "y.heic", ".DS_Store"):
        (folder / name).write_bytes(b"0")
    config = folder_config(folder, labels="none", validation_size=1)
    with pytest.warns(UserWarning, match=r"1 of \.webp, 1 of \.heic; 3 images are"):
        load_dataset(config)
    for path in folder.glob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"1 of \.webp, 1 of \.heic: convert"):
        load_dataset(config)


@pytest.mark.parametrize(("orientation", "warned"), [(None, 0), (1, 0), (6, 1)])
def test_photographs_that_are_stored_turned_are_warned_of(
    tmp_path, orientation, warned
):
    for name in ("ant", "bee"):
        write_images(tmp_path / name, 3, 10)
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255  # the upper half
    image = Image.fromarray(pixels)
    exif = image.getexif()
    if orientation:
        exif[0x0112] = orientation
    image.save(tmp_path / "ant" / "a.jpg", exif=exif, quality=95)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = folder_config(tmp_path, labels="none", validation_size=1)
        dataset = load_dataset(config)
    said = [c for c in caught if "1 of 7 photographs" in str(c.message)]
    assert len(said) == warned
    batches = [*dataset.calibration(9), *dataset.validation(), *dataset.test()]
    found = np.concatenate(batches)
    (read,) = [each for each in found if each.max() > 100]
    assert read[:4].min() > 200 and read[4:].max() < 50  # as it is stored


def test_a_bmp_with_a_palette_is_refused(tmp_path):
    folder = written(tmp_path, "P", ".bmp")
    with pytest.raises(DataError, match="a BMP with a palette"):
        load_dataset(DataConfig(folder, image_size=8))


@pytest.mark.parametrize("cache", [True, False])
def test_images_without_labels(tmp_path, cache):
    write_images(tmp_path / "flat", 8, 10)
    write_images(tmp_path / "flat" / "more", 2, 90)
    config = folder_config(tmp_path / "flat", labels="none", cache=cache)
    dataset = load_dataset(config)
    assert not dataset.labelled and dataset.class_names == ()
    assert dataset.sizes == {"train": 7, "validation": 1, "test": 2}
    batches = [*dataset.calibration(100), *dataset.validation(), *dataset.test()]
    values = sorted(float(i.numpy().mean()) for b in batches for i in b)
    assert values == [10.0] * 8 + [90.0] * 2
    with pytest.raises(DataError, match=r"labels='none'.*loss_delta"):
        dataset.train(0, 1)


def test_labels_may_be_left_unread(image_folder):
    dataset = load_dataset(folder_config(image_folder, labels="none"))
    assert dataset.sizes == {"train": 22, "validation": 2, "test": 6}
    assert dataset.test().element_spec.shape == (None, 8, 8, 3)
    digits = load_dataset(DataConfig("digits", labels="none"))
    assert not digits.labelled and digits.test().element_spec.shape == (None, 8, 8, 1)


def test_labels_that_cannot_be(tmp_path):
    with pytest.raises(DataError, match="labels='all'"):
        DataConfig("digits", labels="all")
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=r"must hold .*\.jpg"):
        load_dataset(folder_config(tmp_path, labels="none"))


def test_whether_a_folder_has_classes(image_folder, tmp_path):
    write_images(tmp_path / "flat", 1, 10)
    (tmp_path / "flat" / "thumbnails").mkdir()
    assert has_classes(image_folder)
    assert not has_classes(tmp_path / "flat")
