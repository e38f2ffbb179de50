"""Stored weights take a form of Core ML with the very values they have. NumPy only."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.backends.coreml_weights import Linear, Palette, form_of
from edgekd.quantize.encoded import Encoded
from edgekd.quantize.unpacked import Symmetric


def stored(shape, size, levels, *, codebook=False, offset=True, whole=False, seed=0):
    """Return a weight tensor in buckets of `size`, every number drawn."""
    rng = np.random.default_rng(seed)
    count = int(np.prod(shape))
    rows = -(-count // size)
    indices = rng.integers(0, levels, (rows, size)).astype(np.uint8)
    scale = rng.uniform(0.01, 0.1, rows).astype(np.float32)
    zero = rng.integers(0, levels, rows).astype(np.float32) if whole else rng.uniform(0, levels, rows).astype(np.float32)
    points = np.sort(rng.normal(size=levels)).astype(np.float32) if codebook else None
    return Encoded(indices, scale, (-scale * zero).astype(np.float32) if offset else None, points, levels, shape)


SHAPES = [(6, 4), (6, 4, 3, 3), (5, 1, 3), (7,)]


@given(
    shape=st.sampled_from(SHAPES),
    per_channel=st.booleans(),
    levels=st.sampled_from([2, 4, 5, 8, 16, 33, 64, 100, 256]),
    codebook=st.booleans(),
    whole=st.booleans(),
    ios=st.sampled_from([17, 18]),
    seed=st.integers(0, 99),
)
@settings(max_examples=200)
def test_palettes_hold_the_values_to_the_bit_and_integers_to_a_rounding(shape, per_channel, levels, codebook, whole, ios, seed):
    size = int(np.prod(shape[1:])) if per_channel else int(np.prod(shape))
    one = stored(shape, size, levels, codebook=codebook, whole=whole, seed=seed)
    form = form_of(one, ios)
    if isinstance(form, str):
        assert ios == 17
        assert per_channel
        assert "iOS 18" in form
        return
    if isinstance(form, Palette):
        assert np.array_equal(form.decoded(), one.decoded())
        assert form.bits in ((1, 2, 4, 6, 8) if ios == 17 else (1, 2, 3, 4, 6, 8))
        assert form.indices.max() < levels
    else:
        assert np.abs(form.decoded() - one.decoded()).max() <= 1e-6 * max(1, np.abs(one.decoded()).max())
        assert not codebook
        assert form.bits in (4, 8)


def test_a_palette_s_points_are_the_learned_ones():
    one = stored((3, 2, 2), 4, 4, codebook=True)
    form = form_of(one, 18)
    assert form.points.shape == (3, 1, 1, 4)
    for channel in range(3):
        by_hand = [np.float32(np.float32(p * one.scale[channel]) + one.offset[channel]) for p in one.points]
        assert form.points[channel, 0, 0].tolist() == by_hand
    assert np.array_equal(form.indices.reshape(3, 4), one.indices)


@pytest.mark.parametrize(("levels", "ios", "bits"), [(8, 17, 4), (8, 18, 3), (17, 18, 6), (65, 17, 8), (3, 17, 2)])
def test_a_width_that_core_ml_lacks_becomes_the_next_one(levels, ios, bits):
    one = stored((4, 4), 16, levels, codebook=True)
    form = form_of(one, ios)
    assert form.bits == bits
    assert np.array_equal(form.decoded(), one.decoded())


def test_whole_zero_points_of_4_bits_are_integers_since_ios_18():
    one = stored((6, 4), 4, 16, whole=True)
    form = form_of(one, 18)
    assert isinstance(form, Linear)
    assert form.bits == 4
    assert form.q.dtype == np.uint8
    assert np.array_equal(form.q, one.indices)
    assert np.array_equal(form.zero[:, 0], np.rint(-one.offset / one.scale))
    assert isinstance(form_of(stored((6, 4), 4, 16), 18), Palette)


def test_8_bits_are_stored_about_zero():
    one = stored((6, 4), 4, 256)
    form = form_of(one, 17)
    assert isinstance(form, Linear)
    assert form.q.dtype == np.int8
    assert np.array_equal(form.q.astype(int) + 128, one.indices)
    assert np.allclose(form.zero[:, 0], -one.offset / one.scale - 128, rtol=1e-5, atol=1e-4)


def test_a_bucket_of_one_value_keeps_it():
    one = stored((3, 5), 5, 256)
    one = Encoded(one.indices, one.scale * [0, 1, 0], np.array([0.7, *one.offset[1:2], 0], np.float32), None, 256, (3, 5))
    one = Encoded(one.indices, one.scale.astype(np.float32), one.offset, None, 256, (3, 5))
    assert np.allclose(form_of(one, 18).decoded(), one.decoded(), atol=1e-6)


@pytest.mark.parametrize(("size", "blocks"), [(36, (2, 1, 1, 1)), (72, (1, 1, 1, 1)), (12, (2, 3, 1, 1)), (2, (2, 9, 2, 1))])
def test_buckets_that_are_boxes_of_the_tensor_are_blocks(size, blocks):
    one = stored((2, 9, 2, 2), size, 4)
    form = form_of(one, 18)
    assert form.points.shape[:-1] == blocks
    assert np.array_equal(form.decoded(), one.decoded())


@pytest.mark.parametrize("size", [18, 9, 6, 7, 24, 71])
def test_buckets_that_cut_across_channels_are_refused(size):
    assert "use granularity `channel` or `tensor`" in form_of(stored((2, 9, 2, 2), size, 4), 18)


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_symmetric_int8_keeps_its_axis(axis):
    q = np.arange(-6, 6, dtype=np.int8).reshape(3, 4)
    scale = np.array(0.5, np.float32) if axis is None else np.arange(1, q.shape[axis] + 1, dtype=np.float32)
    form = form_of(Symmetric(q, scale, axis), 17)
    by_hand = q * (0.5 if axis is None else scale.reshape((-1, 1) if axis == 0 else (1, -1)))
    assert np.array_equal(form.decoded(), by_hand)
    assert np.array_equal(form.transposed().decoded(), by_hand.T)
    assert not form.zero.any()
