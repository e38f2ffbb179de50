"""Decoding, converting, resizing and cropping one picture."""

import io

import numpy as np
import pytest
from PIL import Image

from edgekd.data.pictures import decode, fit, is_gray
from edgekd.errors import BadInput


def encoded(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def test_a_picture_of_the_right_size_is_untouched():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(fit(Image.fromarray(pixels), (5, 7), 3), pixels)
    assert np.array_equal(fit(pixels, None, 3), pixels)


def test_halving_averages_as_the_triangle_filter_says():
    # Bilinear with antialiasing at half size: a triangle of radius 2 around 2 x + 1, weights 1 3 3 1 / 8; edges renormalized.
    row = np.array([0, 0, 80, 160, 240, 240, 0, 80], np.uint8)
    made = fit(np.tile(row, (8, 1)), (4, 4), 1)[:, :, 0]
    wide = row.astype(float)
    expected = [
        (3 * wide[0] + 3 * wide[1] + wide[2]) / 7,
        (wide[1] + 3 * wide[2] + 3 * wide[3] + wide[4]) / 8,
        (wide[3] + 3 * wide[4] + 3 * wide[5] + wide[6]) / 8,
        (wide[5] + 3 * wide[6] + 3 * wide[7]) / 7,
    ]
    assert np.abs(made - np.array(expected)).max() <= 1


def test_the_crop_is_the_centre_of_what_covers_the_size():
    pixels = np.zeros((20, 40), np.uint8)
    pixels[:, 10:30] = 255  # the middle square
    assert (fit(pixels, (20, 20), 1) == 255).all()
    framed = np.zeros((20, 20), np.uint8)
    framed[5:15, 5:15] = 200
    assert (fit(framed, (10, 10), 1, crop=0.5) == 200).all()


@pytest.mark.parametrize(("stored", "size"), [((30, 20), (16, 16)), ((7, 50), (9, 4)), ((100, 3), (5, 5))])
def test_any_shape_becomes_the_asked_one(stored, size):
    assert fit(np.zeros(stored, np.uint8), size, 3, crop=0.875).shape == (*size, 3)


def test_gray_keeps_sixteen_bits_upper_byte():
    pixels = np.array([[0, 256, 65535], [32768, 511, 512]], np.uint16)
    assert fit(Image.fromarray(pixels), None, 1)[:, :, 0].tolist() == [[0, 1, 255], [128, 1, 2]]


def test_rgb_to_gray_uses_the_luma_of_bt601():
    made = fit(np.array([[[200, 0, 0], [0, 200, 0], [0, 0, 200]]], np.uint8), None, 1)[0, :, 0]
    assert np.abs(made - 200 * np.array([0.299, 0.587, 0.114])).max() <= 1


def test_exif_orientation_is_obeyed():
    picture = Image.fromarray(np.zeros((4, 8), np.uint8))
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by a quarter
    assert decode(encoded(picture, "JPEG", exif=exif), "here").size == (4, 8)


@pytest.mark.parametrize(
    ("mode", "gray"), [("L", True), ("LA", True), ("1", True), ("I;16", True), ("RGB", False), ("RGBA", False)]
)
def test_gray_is_told_by_the_mode(mode, gray):
    assert is_gray(Image.new(mode, (2, 2))) is gray


@pytest.mark.parametrize(("mode", "kind"), [("F", "floats"), ("I", "32-bit integers")])
def test_values_whose_white_is_not_known_are_refused(mode, kind):
    with pytest.raises(BadInput, match=f"here: a picture of {kind}, .* save it with 8 bits"):
        decode(encoded(Image.new(mode, (2, 2), 1), "TIFF"), "here")


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_read_from_any_format(kind):
    stored = encoded(Image.fromarray(np.array([[0, 256, 65535]], np.uint16)), kind)
    if kind == "PPM":
        stored = b"P5 3 1 65535\n" + np.array([0, 256, 65535], ">u2").tobytes()
    picture = decode(stored, "here")
    assert is_gray(picture)
    assert fit(picture, None, 1)[0, :, 0].tolist() == [0, 1, 255]


def test_whatever_is_wrong_with_the_bytes_it_is_one_message(monkeypatch):
    def fail(*args):
        raise IndexError

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(BadInput, match=r"here: unreadable picture \(IndexError\)"):
        decode(b"GIF89a", "here")
