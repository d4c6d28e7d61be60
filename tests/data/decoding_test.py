"""Decoding against Pillow and against decoding whole images first."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from gmpq_tf.data.decoding import ImageDecoder, resize


def test_centre_square_is_kept(encode_image):
    pixels = np.random.default_rng(0).integers(0, 256, (10, 6, 3), np.uint8)
    encoded = tf.constant(encode_image(pixels))
    np.testing.assert_array_equal(ImageDecoder(6, 3)(encoded), pixels[2:8])
    half = ImageDecoder(3, 3, crop_fraction=0.5)(encoded)
    np.testing.assert_array_equal(half, pixels[3:6, 1:4])


@pytest.mark.parametrize(
    "kind, options",
    [
        ("JPEG", {"subsampling": "4:2:0"}),
        ("JPEG", {"subsampling": "4:2:2"}),
        ("JPEG", {"subsampling": "4:4:4"}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("BMP", {}),
    ],
)
def test_window_is_that_part_of_the_whole_image(
    encode_image, photograph, kind, options
):
    """Decoding a part of a JPEG file gives the pixels that decoding it whole gives."""
    encoded = tf.constant(encode_image(photograph(90, 120), kind, **options))
    whole = tf.io.decode_image(encoded, 3).numpy()
    for top, left in [(0, 0), (13, 37), (50, 80)]:
        part = ImageDecoder(40, 3)(encoded, lambda _, t=top, x=left: [t, x, 40, 40])
        np.testing.assert_array_equal(part, whole[top : top + 40, left : left + 40])


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_window_is_chosen_by_height_and_width(encode_image, photograph, kind):
    seen = []

    def window(shape):
        seen.append(shape.numpy().tolist())
        return tf.constant([0, 0, 8, 8])

    ImageDecoder(8, 3)(tf.constant(encode_image(photograph(30, 50), kind)), window)
    assert seen == [[30, 50]]


def test_banner_is_never_read(encode_image, photograph):
    pixels = photograph(60, 60) // 2
    pixels[-20:] = 255
    encoded = tf.constant(encode_image(pixels))
    decode = ImageDecoder(40, 3, banner=20)
    np.testing.assert_array_equal(decode(encoded), pixels[:40, 10:50])
    whole = decode(encoded, lambda shape: tf.concat([[0, 0], shape], 0))
    assert whole.numpy().max() < 200


def test_grey_and_colour_are_converted(encode_image, photograph):
    colour = photograph(16, 16)
    grey = np.asarray(Image.fromarray(colour).convert("L"))
    made_grey = ImageDecoder(16, 1)(tf.constant(encode_image(colour, "JPEG")))
    made_colour = ImageDecoder(16, 3)(tf.constant(encode_image(grey)))
    assert np.abs(made_grey[..., 0].numpy().astype(int) - grey).max() < 16
    np.testing.assert_array_equal(made_colour, np.repeat(grey[..., None], 3, axis=2))


def test_transparent_images_keep_their_fourth_channel(encode_image):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 4), np.uint8)
    encoded = tf.constant(encode_image(pixels))
    np.testing.assert_array_equal(ImageDecoder(6, 4)(encoded), pixels)


@pytest.mark.parametrize(
    "options, keeps_all",
    [
        ({"stored_side": 8}, True),
        ({"stored_side": 9}, False),
        ({}, False),
        ({"stored_side": 8, "crop_fraction": 0.9}, False),
        ({"stored_side": 8, "banner": 1}, False),
    ],
)
def test_what_keeps_every_pixel(options, keeps_all):
    assert ImageDecoder(8, 3, **options).keeps_all == keeps_all


def test_resize_agrees_with_pillow():
    ramp = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8) * 4
    expected = np.asarray(
        Image.fromarray(ramp).resize((8, 8), Image.Resampling.BILINEAR)
    )
    result = resize(tf.constant(ramp[..., None]), 8).numpy()[..., 0]
    assert np.abs(result.astype(int) - expected).max() <= 1


def test_resize_leaves_fitting_images_alone():
    images = tf.zeros([1, 4, 4, 3], tf.uint8)
    assert resize(images, 4) is images
