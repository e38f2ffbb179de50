import pytest
import torch
from torch import nn

from edgekd.errors import BadInput
from edgekd.quantize.layers import unquantized, weights_of


def net():
    return nn.Sequential(
        *[nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()],
        nn.Sequential(nn.ConvTranspose2d(4, 4, 3), nn.LayerNorm(4), nn.Conv1d(4, 4, 1)),
        nn.Linear(4, 5),
        nn.Embedding(7, 5),
    )


ALL = ["0.weight", "3.0.weight", "3.2.weight", "4.weight", "5.weight"]


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        ([], []),
        (["first"], ["0.weight"]),
        (["first", "last"], ["0.weight", "5.weight"]),
        (["3"], ["3.0.weight", "3.2.weight"]),  # a module: all inside it
        (["3.2"], ["3.2.weight"]),
        (["3.*"], ["3.0.weight", "3.2.weight"]),
        (["?"], ALL[:-1]),
        (["1"], []),  # a norm: it is not quantized anyway
    ],
)
def test_what_is_quantized_and_what_is_kept(keep, kept):
    if keep == ["?"]:  # every module at the top, and so everything
        with pytest.raises(BadInput, match="leaves nothing to quantize"):
            weights_of(net(), keep)
    else:
        assert weights_of(net(), keep) == [name for name in ALL if name not in kept]


def test_a_layer_alone():
    assert weights_of(nn.Linear(3, 2)) == ["weight"]


def test_nothing_to_quantize():
    with pytest.raises(BadInput, match="no convolution, linear layer or embedding"):
        weights_of(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)))
    with pytest.raises(BadInput, match="keep: first leaves nothing to quantize"):
        weights_of(nn.Linear(3, 2), ["first"])


def test_a_pattern_that_matches_nothing_is_told_with_what_there_is():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Linear(2, 2), nn.Linear(2, 2)

    with pytest.raises(BadInput, match=r"called `haed` \(did you mean `head`\?\).*first, last, stem, head"):
        weights_of(Named(), ["haed"])


def test_a_shared_weight_counts_once_and_is_kept_with_either_layer():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.middle, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9, bias=False)
            self.head.weight = self.embed.weight

    assert weights_of(Tied()) == ["embed.weight", "middle.weight"]
    assert weights_of(Tied(), ["last"]) == ["middle.weight"]
    assert weights_of(Tied(), ["embed"]) == ["middle.weight"]


def test_a_weight_that_is_computed_is_refused_unless_kept():
    made = nn.Sequential(nn.Linear(3, 3), nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)))
    with pytest.raises(BadInput, match="`1` computes its weight"):
        weights_of(made)
    assert weights_of(made, ["last"]) == ["0.weight"]


def test_all_other_weights_are_those_that_stay():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.place, self.shift = nn.Parameter(torch.zeros(5, 4)), nn.Parameter(torch.zeros(4))
            self.embed, self.lstm, self.norm = nn.Embedding(9, 4), nn.LSTM(4, 3), nn.LayerNorm(4)
            self.old = nn.utils.weight_norm(nn.Linear(4, 4))
            self.new = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
            self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
            self.head = nn.Linear(4, 9, bias=False)
            self.head.weight = self.embed.weight

    rest = ["place", "lstm.weight_ih_l0", "lstm.weight_hh_l0", "old.weight", "new.weight", "spectral.weight"]
    assert unquantized(Mixed(), ["embed.weight"]) == rest
    assert unquantized(Mixed(), ["head.weight"]) == rest
    assert sorted(unquantized(Mixed(), [])) == sorted([*rest, "embed.weight"])
    assert unquantized(nn.Linear(2, 3), ["weight"]) == []
