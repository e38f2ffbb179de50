"""Preprocessing inside the module: numbers against NumPy and Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from edgekd.preprocess import Preprocessed, description, size_of
from edgekd.recipe import Preprocess

PICTURES = np.random.default_rng(0).integers(70, 186, (3, 8, 6, 3), dtype=np.uint8)


def test_scaling_normalizing_and_channel_order():
    config = Preprocess(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    made = Preprocessed(nn.Identity(), config)(torch.from_numpy(PICTURES)).numpy()
    expected = (PICTURES / 255 - np.array([0.1, 0.2, 0.3])) / np.array([0.5, 0.6, 0.7])
    assert made.shape == (3, 3, 8, 6)
    assert np.abs(made - expected.transpose(0, 3, 1, 2)).max() < 1e-6


def test_one_mean_is_good_for_every_channel():
    made = Preprocessed(nn.Identity(), Preprocess(mean=(0.5,), std=(0.25,)))(torch.from_numpy(PICTURES)).numpy()
    assert np.abs(made - ((PICTURES / 255 - 0.5) / 0.25).transpose(0, 3, 1, 2)).max() < 1e-6


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("size", [(4, 3), (16, 10), (8, 6)])
def test_resizing_is_what_pillow_does(size, interpolation):
    made = Preprocessed(nn.Identity(), Preprocess(size=size, interpolation=interpolation))(torch.from_numpy(PICTURES)).numpy()
    for ours, picture in zip(made, PICTURES, strict=True):
        theirs = np.asarray(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling[interpolation.upper()]))
        # Pillow rounds to bytes after each of its two passes, and clips: the pictures keep away from 0 and 255
        assert np.abs(ours.transpose(1, 2, 0).clip(0, 1) * 255 - theirs).max() <= 1.5


def test_the_state_dict_is_the_networks_own():
    net = nn.Linear(3, 2)
    assert set(Preprocessed(net, Preprocess()).state_dict()) == {"net.weight", "net.bias"}


def test_one_number_is_a_square():
    assert size_of(Preprocess(size=9)) == (9, 9)
    assert size_of(Preprocess(size=(4, 5))) == (4, 5)
    assert size_of(Preprocess()) is None


def test_the_description_names_every_step():
    steps = description(Preprocess(size=8, mean=(0.5,), std=(0.2,), crop=0.875), (16, 16, 3))
    assert [step["step"] for step in steps["host"]] == ["decode", "convert", "resize", "centre-crop"]
    assert steps["host"][2]["to_cover"] == [18, 18]
    assert [step["step"] for step in steps["graph"]] == ["scale", "resize", "normalize", "transpose"]
    assert [step["step"] for step in description(Preprocess(), (8, 8, 1))["graph"]] == ["scale", "normalize", "transpose"]
