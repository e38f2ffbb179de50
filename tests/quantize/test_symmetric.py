import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from edgekd.quantize import fake
from edgekd.quantize.symmetric import Symmetric


def test_numbers_worked_by_hand():
    """Four levels, -2 to 1 steps: a bucket whose largest is 3 has a step of 3, one whose smallest is -4 a step of 2."""
    quantizer = Symmetric(4, 2)
    weights = torch.tensor([[3.0, -4.0, 1.0, -1.6], [-4.0, 2.0, 0.9, -1.1]])
    indices, scale, offset, points = quantizer.encode(weights)
    assert scale.tolist() == [3.0, 2.0]
    assert offset.tolist() == [-6.0, -4.0]
    assert indices.tolist() == [[3, 1, 2, 1], [0, 3, 2, 1]]
    assert points is None
    assert quantizer(weights).tolist() == [[3, -3, 0, -3], [-4, 2, 0, -2]]


@settings(deadline=None)
@given(
    arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 9)), elements=st.floats(-8, 8, width=32)), st.integers(2, 8)
)
def test_the_error_is_at_most_half_a_step_and_zero_stays_zero(weights, bits):
    quantizer = Symmetric(4, bits)
    made = quantizer(torch.from_numpy(weights)).numpy()
    _, scale, _, _ = quantizer.encode(torch.from_numpy(weights))
    steps = np.repeat(scale.numpy(), 4)[: weights.size].reshape(weights.shape)
    assert (np.abs(made - weights) <= steps / 2 * (1 + 1e-5) + 1e-7).all()
    assert (made[weights == 0] == 0).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_what_is_stored_is_what_the_network_computes(bits):
    torch.manual_seed(0)
    net = nn.Linear(10, 6)
    fake.attach(net, {"weight": Symmetric(8, bits)})
    before = net.weight.detach().clone()
    encoded = fake.bake(net)["weight"]
    np.testing.assert_allclose(encoded.decoded(), before.numpy(), rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(encoded.decoded(), net.weight.detach().numpy())
    np.testing.assert_array_equal(encoded.offset, -(1 << bits - 1) * encoded.scale)


def test_the_gradient_goes_straight_through():
    weights = torch.randn(3, 5, requires_grad=True)
    by = torch.randn(3, 5)
    (Symmetric(4, 3)(weights) * by).sum().backward()
    torch.testing.assert_close(weights.grad, by)


def test_nan_is_seen():
    weights = torch.tensor([[1.0, float("nan")], [1.0, 2.0]])
    made = Symmetric(2, 4)(weights)
    assert made[0].isnan().all()
    assert not made[1].isnan().any()
