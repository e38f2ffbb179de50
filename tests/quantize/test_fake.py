import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from edgekd.distill.memory_format import channels_last, contiguous
from edgekd.errors import BadInput
from edgekd.quantize import fake
from edgekd.quantize.codebook import Codebook
from edgekd.quantize.encoded import Encoded
from edgekd.quantize.learned_scale import LearnedScale
from edgekd.quantize.uniform import MinMax

NAMES = ("0.weight", "4.weight")
QUANTIZERS = {
    "uniform": lambda w: MinMax(32, 4),
    "stochastic": lambda w: MinMax(32, 4, stochastic=True),
    "truncated": lambda w: MinMax(32, 2, "truncated"),
    "exact": lambda w: MinMax(32, 3, "exact"),
    "per channel": lambda w: MinMax(w[0].numel(), 8),
    "learned": lambda w: LearnedScale(32, 2, w),
    "codebook": lambda w: Codebook(32, 11, w),
    "codebook of a learned range": lambda w: Codebook(
        32, 4, w, True, (torch.rand(-(-w.numel() // 32)), -torch.rand(-(-w.numel() // 32)))
    ),
}
each = pytest.mark.parametrize("make", QUANTIZERS.values(), ids=QUANTIZERS)


def net():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7), nn.ReLU(), nn.Flatten(), nn.Linear(63, 5))
    with torch.no_grad():
        made[0].weight.mul_(3)
    return made


def attached(make):
    made = net()
    fake.attach(made, {name: make(made.get_parameter(name)) for name in NAMES})
    return made


@each
def test_baked_weights_are_those_computed_with_and_those_stored(make):
    made, plain = attached(make), net()
    x = torch.randn(6, 3, 5, 5)
    channels_last(made, lambda: made(x))
    made.eval()
    outputs, weights = made(x), [made[i].weight.clone() for i in (0, 4)]
    contiguous(made)
    encoded = fake.bake(made)
    assert list(encoded) == list(NAMES)
    assert type(made[0]) is nn.Conv2d
    assert list(made.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in made.named_parameters()] == [name for name, _ in plain.named_parameters()]
    for name, computed in zip(NAMES, weights, strict=True):
        one = encoded[name]
        assert one.shape == tuple(computed.shape)
        assert int(one.indices.max()) < one.levels
        np.testing.assert_array_equal(made.get_parameter(name).detach().numpy(), one.decoded())
        np.testing.assert_array_equal(one.decoded(), computed.detach().numpy())
        assert not torch.equal(computed, plain.get_parameter(name))
    assert torch.equal(made[0].bias, plain[0].bias)
    torch.testing.assert_close(made(x), outputs, rtol=1e-5, atol=1e-6)


@each
def test_training_moves_the_weights_behind_and_a_checkpoint_brings_all_back(make, tmp_path):
    made, x = attached(make).train(), torch.randn(6, 3, 5, 5)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1, momentum=0.9)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    for _ in range(3):
        optimizer.zero_grad()
        made(x).square().sum().backward()
        optimizer.step()
    after = made.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name, _ in made.named_parameters()} <= moved
    save_file({name: value.contiguous() for name, value in after.items()}, tmp_path / "state.safetensors")
    other = attached(make)
    other.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert torch.equal(made.eval()(x), other.eval()(x))
    for name, one in fake.encode(made).items():
        np.testing.assert_array_equal(one.decoded(), fake.encode(other)[name].decoded())


@each
def test_a_copy_is_a_network_of_its_own(make):
    made, x = attached(make).eval(), torch.randn(2, 3, 5, 5)
    twin = copy.deepcopy(made)
    assert torch.equal(twin(x), made(x))
    expected = made(x)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.3)
    assert torch.equal(made(x), expected)
    assert not torch.equal(twin(x), expected)
    fake.bake(twin)
    assert torch.equal(made(x), expected)
    third = copy.deepcopy(made)
    fake.detach(made)
    assert torch.equal(third(x), expected)


def test_detaching_gives_the_full_precision_weights_back():
    made, plain = attached(lambda w: MinMax(32, 1)), net()
    assert len(made[0].weight.unique()) < len(plain[0].weight.unique())
    fake.detach(made)
    assert type(made[0]) is nn.Conv2d
    assert list(made.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in made.state_dict().items())


@pytest.mark.parametrize("finish", [fake.bake, fake.detach])
def test_frozen_weights_stay_frozen_and_trained_ones_trained(finish):
    made = net()
    made[4].weight.requires_grad_(False)
    fake.attach(made, {name: Codebook(32, 4, made.get_parameter(name)) for name in NAMES})
    made.requires_grad_(False)
    finish(made)
    assert [made.get_parameter(name).requires_grad for name in NAMES] == [True, False]


def test_the_parameter_stays_the_same_object():
    made = net()
    weight = made[0].weight
    fake.attach(made, {"0.weight": MinMax(32, 4)})
    assert made[0].parametrizations.weight.original is weight
    fake.bake(made)
    assert made[0].weight is weight


def test_one_layer_without_a_name():
    layer = nn.Linear(6, 4)
    fake.attach(layer, {"weight": MinMax(24, 2)})
    assert list(fake.bake(layer)) == ["weight"]
    assert len(layer.weight.unique()) == 4


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x))


def test_layers_that_share_a_weight_share_its_quantizer():
    made, plain, x = Tied(), Tied(), torch.arange(9)
    plain.load_state_dict(made.state_dict())
    fake.attach(made, {"embed.weight": LearnedScale(36, 2, made.embed.weight)})
    assert torch.equal(made.head.weight, made.embed.weight)
    assert len(made.head.weight.unique()) == 4
    twin = copy.deepcopy(made)
    outputs = made(x)
    encoded = fake.bake(made)
    assert list(encoded) == ["embed.weight"]
    assert made.head.weight is made.embed.weight
    torch.testing.assert_close(made(x), outputs)
    assert list(made.state_dict()) == list(plain.state_dict())
    fake.detach(twin)
    assert twin.head.weight is twin.embed.weight
    assert torch.equal(twin.head.weight, plain.head.weight)


def test_buffers_and_modes_are_left_alone():
    made = attached(lambda w: MinMax(32, 4)).train()
    made(torch.randn(6, 3, 5, 5))
    mean = made[1].running_mean.clone()
    fake.encode(made)
    fake.bake(made)
    assert made.training
    assert torch.equal(made[1].running_mean, mean)


def test_stochastic_rounding_is_baked_to_the_nearest():
    made, plain = attached(lambda w: MinMax(32, 4, stochastic=True)).train(), net()
    encoded = fake.bake(made)
    assert torch.equal(made[0].weight, MinMax(32, 4)(plain[0].weight))
    assert encoded["0.weight"].levels == 16


@pytest.mark.parametrize("make", [lambda w: MinMax(32, 4), lambda w: LearnedScale(32, 4, w), lambda w: Codebook(32, 4, w)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(make, bad):
    made = attached(make)
    with torch.no_grad():
        made[4].parametrizations.weight.original[0, 0] = bad
    with pytest.raises(BadInput, match=r"`4.weight` has NaN or infinite weights"):
        fake.bake(made)


def test_half_precision_networks_are_baked_too():
    made = net().bfloat16()
    fake.attach(made, {"4.weight": MinMax(32, 4)})
    computed = made[4].weight.clone()
    fake.bake(made)
    assert made[4].weight.dtype == torch.bfloat16
    assert torch.equal(made[4].weight, computed)


def test_stored_numbers_by_hand():
    one = Encoded(
        indices=np.array([[0, 1, 3], [2, 0, 0]], np.uint8),
        scale=np.array([0.5, 2.0], np.float32),
        offset=np.array([-1.0, 0.25], np.float32),
        points=None,
        levels=4,
        shape=(2, 2),
    )
    assert one.decoded().tolist() == [[-1, -0.5], [0.5, 4.25]]
    assert (one.count, one.bits) == (4, 2)
    book = Encoded(one.indices, one.scale, None, np.array([0, 0.1, 0.5, 1], np.float32), 4, (2, 2))
    np.testing.assert_allclose(book.decoded(), [[0, 0.05], [0.5, 1]])
    assert [Encoded(one.indices, one.scale, None, None, n, (4,)).bits for n in (2, 3, 4, 5, 16, 17, 256)] == [
        1,
        2,
        2,
        3,
        4,
        5,
        8,
    ]


@pytest.mark.parametrize("own", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_the_students_own_parametrizations_stay(own):
    made = net()
    own(made[4])
    outputs, x = made.eval()[4].weight.clone(), torch.randn(2, 3, 5, 5)
    names = list(made.state_dict())
    fake.attach(made, {"0.weight": MinMax(27, 4)})
    assert [name for name, *_ in fake.quantized(made)] == ["0.weight"]
    twin = copy.deepcopy(made)
    assert list(fake.bake(made)) == ["0.weight"]
    fake.detach(twin)
    for one in (made, twin):
        assert list(one.state_dict()) == names
        assert torch.equal(one[4].weight, outputs)
    assert torch.equal(twin(x), made(x)) is False
