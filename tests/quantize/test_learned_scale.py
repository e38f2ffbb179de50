import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgekd.quantize.learned_scale import LearnedScale, least_squares_range


def lsq_plus(w, alpha, beta, bits, slope):
    """One bucket in float64, weight by weight: (w_q, gradient of w, of alpha and of beta before their factor)."""
    s = 2**bits
    made, of_w, of_alpha, of_beta = [], [], 0.0, 0.0
    for x, g in zip(w.astype(np.float64), slope.astype(np.float64), strict=True):
        v = (x - beta) / alpha
        q = float(np.rint(min(max(v, 0.0), 1.0) * (s - 1)) / (s - 1))
        made.append(alpha * q + beta)
        if v < 0:
            of_beta += g
        elif v > 1:
            of_alpha += g
            of_beta += g
        else:
            of_alpha += g * (q - v)
        of_w.append(g if 0 <= v <= 1 else 0.0)
    return np.array(made), np.array(of_w), of_alpha, of_beta


def with_range(size, bits, weights, alpha, beta):
    quantizer = LearnedScale(size, bits, weights)
    with torch.no_grad():
        quantizer.alpha.copy_(torch.tensor(alpha))
        quantizer.beta.copy_(torch.tensor(beta))
    return quantizer


def test_numbers_worked_by_hand():
    # 2 bits from -1 to 2: levels -1, 0, 1, 2; one weight below, three between, one above
    weights = torch.tensor([-3.0, -0.75, 0.25, 1.625, 5.0], requires_grad=True)
    quantizer = with_range(5, 2, weights, [3.0], [-1.0])
    made = quantizer(weights)
    assert made.tolist() == [-1, -1, 0, 2, 2]
    (made * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])).sum().backward()
    assert weights.grad.tolist() == [0, 2, 3, 4, 0]
    # alpha: 2 (0 - 1/12) + 3 (1/3 - 5/12) + 4 (1 - 7/8) + 5; beta: 1 + 5
    factor = 1 / np.sqrt(5 * 3)
    assert float(quantizer.alpha.grad) == pytest.approx((-1 / 6 - 1 / 4 + 1 / 2 + 5) * factor)
    assert float(quantizer.beta.grad) == pytest.approx(6 * factor)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("size", [7, 30, 64])
def test_gradients_are_those_of_lsq_plus(size, bits):
    rng = np.random.default_rng(bits)
    weights, slope = rng.normal(size=(2, 64)).astype(np.float32)
    buckets = math.ceil(64 / size)
    alpha = rng.uniform(0.5, 3, buckets).astype(np.float32)
    beta = rng.uniform(-2, 0, buckets).astype(np.float32)
    w = torch.from_numpy(weights).requires_grad_()
    quantizer = with_range(size, bits, w, alpha, beta)
    made = quantizer(w)
    (made * torch.from_numpy(slope)).sum().backward()
    factor = 1 / np.sqrt(size * (2**bits - 1))
    sides = set()
    for bucket in range(buckets):
        part = slice(bucket * size, (bucket + 1) * size)
        expected = lsq_plus(weights[part], float(alpha[bucket]), float(beta[bucket]), bits, slope[part])
        np.testing.assert_allclose(made[part].detach().numpy(), expected[0], atol=1e-5)
        np.testing.assert_allclose(w.grad[part].numpy(), expected[1], atol=1e-6)
        assert float(quantizer.alpha.grad[bucket]) == pytest.approx(expected[2] * factor, rel=1e-4, abs=1e-5)
        assert float(quantizer.beta.grad[bucket]) == pytest.approx(expected[3] * factor, rel=1e-4, abs=1e-5)
        v = (weights[part] - beta[bucket]) / alpha[bucket]
        sides |= {"below"} if (v < 0).any() else set()
        sides |= {"above"} if (v > 1).any() else set()
    assert sides == {"below", "above"}


def test_stored_values_are_those_computed_with():
    weights = torch.randn(1000)
    quantizer = with_range(300, 3, weights, [1.0, 2.0, -1.5, 1e-4], [-0.5, -0.9, -0.7, 0.1])
    indices, scale, offset, points = quantizer.encode(weights)
    assert points is None
    assert indices.dtype == torch.uint8
    assert indices.max() == 7
    assert (scale > 0).all()
    values = indices.numpy().astype(np.float32) * scale.numpy()[:, None] + offset.numpy()[:, None]
    np.testing.assert_array_equal(values.reshape(-1)[:1000], quantizer(weights).detach().numpy())


def test_a_range_below_zero_counts_by_its_size():
    weights, slope = torch.randn(2, 50)
    results = []
    for alpha in (0.8, -0.8):
        quantizer = with_range(50, 2, weights, [alpha], [-0.4])
        made = quantizer(weights)
        (made * slope).sum().backward()
        results.append((made, quantizer.alpha.grad * np.sign(alpha), quantizer.beta.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("start", [0.0, -1e-12, 1e-12, -0.05])
def test_a_range_driven_through_zero_comes_back(start):
    torch.manual_seed(0)
    weights = torch.randn(256)
    weights[0] = 0.0  # exactly at the end of the range
    quantizer = with_range(256, 2, weights, [start], [0.0])
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.05, momentum=0.9)
    for _ in range(500):
        optimizer.zero_grad()
        (quantizer(weights) - weights).square().sum().backward()
        assert all(p.grad.isfinite().all() for p in quantizer.parameters())
        optimizer.step()
    # as good as the best range that is known
    best = LearnedScale(256, 2, weights)
    reached, least = ((q(weights) - weights).square().mean().item() for q in (quantizer, best))
    assert reached < 1.1 * least


def test_training_finds_better_ranges_for_what_counts():
    torch.manual_seed(0)
    weights, importance = torch.randn(64, 32), torch.rand(64, 32).pow(4)
    quantizer = LearnedScale(32, 2, weights)
    optimizer, errors = torch.optim.Adam(quantizer.parameters(), lr=0.01), []
    for _ in range(200):
        error = ((quantizer(weights) - weights).square() * importance).mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.9 * errors[0]


def error_of(buckets, alpha, beta, levels):
    """Squared error of each bucket in float64, every weight to the nearest of all levels."""
    grid = beta[:, :, None] + alpha[:, :, None] * np.arange(levels) / (levels - 1)
    return (np.abs(buckets[:, :, None].astype(np.float64) - grid).min(2) ** 2).sum(1)


def of_numpy(pair):
    return [t.numpy().astype(np.float64) for t in pair]


@settings(deadline=None, max_examples=60)
@given(
    arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 30)), elements=st.floats(-50, 50, width=32)),
    st.integers(1, 8),
)
@example(np.array([[6.182402e-23, 0.0]], np.float32), 1)
def test_the_start_is_never_worse_than_from_minimum_to_maximum(buckets, bits):
    found = error_of(buckets, *of_numpy(least_squares_range(torch.from_numpy(buckets), 2**bits)), 2**bits)
    low = buckets.min(1, keepdims=True).astype(np.float64)
    whole = error_of(buckets, np.ptp(buckets, axis=1, keepdims=True).astype(np.float64), low, 2**bits)
    constant = buckets.shape[1] * 1e-10**2  # a range below 1e-10 counts as constant: each weight may be off by so much
    assert (found <= whole * (1 + 1e-3) + 1e-9 * np.abs(buckets).max() ** 2 + constant).all()


@pytest.mark.parametrize(("levels", "step"), [(2, 1.596), (4, 0.9957), (8, 0.5860), (16, 0.3352)])
def test_for_normal_weights_the_start_is_the_step_of_max_1960(levels, step):
    weights = torch.randn(1, 400_000, generator=torch.Generator().manual_seed(0))
    alpha, beta = least_squares_range(weights, levels)
    assert float(alpha) / (levels - 1) == pytest.approx(step, rel=0.01)
    assert abs(float(beta + alpha / 2)) < 0.15 * step


@pytest.mark.parametrize("levels", [2, 4, 16])
def test_symmetric_weights_get_symmetric_levels(levels):
    half = torch.randn(5, 100).abs()
    alpha, beta = least_squares_range(torch.cat([half, -half], 1), levels)
    np.testing.assert_allclose((beta + alpha / 2).numpy(), 0, atol=0.02)


def test_a_start_on_an_evenly_spaced_grid_is_that_grid():
    grid = torch.tensor([[-0.3, 0.0, 0.3, 0.6]]).repeat(1, 5)
    alpha, beta = least_squares_range(grid, 4)
    assert (float(alpha), float(beta)) == pytest.approx((0.9, -0.3), abs=1e-6)


def test_buckets_without_a_range_and_empty_ones():
    weights = torch.tensor([0.3, 0.3, 0.3, -2.0])
    assert torch.equal(LearnedScale(3, 4, weights)(weights), weights)
    empty = torch.zeros(0, 3, requires_grad=True)
    quantizer = LearnedScale(1, 4, empty)
    quantizer(empty).sum().backward()
    assert empty.grad.shape == (0, 3)
    assert quantizer.encode(empty)[0].shape == (0, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_quantized_as_its_values_are(dtype):
    weights = torch.randn(50, 7).to(dtype).requires_grad_()
    quantizer = LearnedScale(32, 3, weights)
    assert quantizer.alpha.dtype == torch.float32
    made = quantizer(weights)
    assert made.dtype == dtype
    assert torch.equal(made, quantizer(weights.detach().float()).to(dtype))
    made.sum().backward()
    assert weights.grad.dtype == dtype


def test_the_layout_in_memory_changes_no_number():
    weights = torch.randn(8, 5, 3, 3)
    quantizer, slope, results = LearnedScale(32, 2, weights), torch.randn(8, 5, 3, 3), []
    for w in (weights.contiguous(memory_format=torch.channels_last), weights.clone()):
        w.requires_grad_()
        made = quantizer(w)
        assert made.stride() == w.stride()
        quantizer.zero_grad()
        (made * slope).sum().backward()
        results.append((made.detach(), w.grad, quantizer.alpha.grad.clone(), quantizer.beta.grad.clone()))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert (results[0][1] == 0).any()


def test_a_weight_that_is_no_number_stays_so():
    weights = torch.randn(8)
    quantizer = LearnedScale(4, 4, weights)
    weights[5] = float("nan")
    assert quantizer(weights).isnan().tolist() == [i == 5 for i in range(8)]
