"""Taps: layers by name."""

import pytest
import torch
from torch import nn

from edgekd.distill.taps import Taps
from edgekd.errors import BadInput


class Pair(nn.Module):
    """Returns a tuple, as attention layers do."""

    def forward(self, x):
        return {"none": None, "value": (x + 1, x)}


class Nothing(nn.Module):
    def forward(self, x):
        self.seen = x
        return


def test_outputs_are_those_of_the_layers():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(5, 3)
    with Taps(net, ["1", "0", "1"]) as taps:
        net(x)
        assert torch.equal(taps.outputs["0"], net[0](x))
        assert torch.equal(taps.outputs["1"], net[0](x).relu())
    taps.outputs.clear()
    net(x)
    assert not taps.outputs


def test_names_are_those_of_the_network_behind_the_preprocessing():
    outer = nn.Module()
    outer.net = nn.Sequential(nn.Linear(3, 4))
    with Taps(outer, ["0"]) as taps:
        outer.net(torch.zeros(1, 3))
        assert taps.outputs["0"].shape == (1, 4)


def test_the_first_tensor_of_a_container_counts():
    net = nn.Sequential(Pair())
    with Taps(net, ["0"]) as taps:
        net(torch.zeros(2))
        assert torch.equal(taps.outputs["0"], torch.ones(2))


def test_an_unknown_name_gives_the_nearest():
    net = nn.Sequential()
    net.add_module("layer1", nn.Linear(3, 4))
    with pytest.raises(BadInput, match=r"student has no layer `layer_1` \(did you mean `layer1`\?\)"):
        Taps(net, ["layer_1"], "student")


def test_a_layer_without_a_tensor_is_refused():
    net = nn.Sequential(Nothing())
    with Taps(net, ["0"], "teacher"), pytest.raises(BadInput, match="`0` of the teacher gives a NoneType"):
        net(torch.zeros(1))
