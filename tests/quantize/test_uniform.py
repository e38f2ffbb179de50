import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from edgekd.quantize.uniform import MinMax

F32 = np.finfo(np.float32).eps


def reference(weights: np.ndarray, size: int, bits: int) -> np.ndarray:
    """papers.md section A in float64, one bucket at a time; rint goes to the even one of two equally near levels."""
    flat, made, s = weights.astype(np.float64).reshape(-1), [], 2**bits
    for start in range(0, len(flat), size):
        bucket = flat[start : start + size]
        beta, alpha = bucket.min(), bucket.max() - bucket.min()
        alpha = 1.0 if alpha < 1e-10 else alpha
        made.append(alpha * np.rint((bucket - beta) / alpha * (s - 1)) / (s - 1) + beta)
    return np.concatenate(made).reshape(weights.shape)


def decoded(quantizer, weights):
    """indices * scale + offset, by NumPy."""
    indices, scale, offset, points = quantizer.encode(weights)
    assert points is None
    assert indices.dtype == torch.uint8
    assert int(indices.max()) < quantizer.levels
    values = indices.numpy().astype(np.float64) * scale.numpy()[:, None] + offset.numpy()[:, None]
    return values.reshape(-1)[: weights.numel()].reshape(weights.shape)


def test_numbers_worked_by_hand():
    # 2 bits: levels 0, 1, 2, 3; and in the second bucket -1, -0.5, 0, 0.5
    weights = torch.tensor([0.0, 0.4, 2.6, 3.0, -1.0, -0.8, 0.2, 0.5])
    assert MinMax(4, 2)(weights).tolist() == [0, 0, 3, 3, -1, -1, 0, 0.5]
    # 1 bit: the extremes
    assert MinMax(4, 1)(weights).tolist() == [0, 0, 3, 3, -1, -1, 0.5, 0.5]


def test_halves_go_to_the_even_level():
    assert MinMax(5, 2)(torch.tensor([0.0, 0.5, 1.5, 2.5, 3.0])).tolist() == [0, 0, 2, 2, 3]
    assert MinMax(4, 2)(torch.tensor([-1.0, -0.75, 0.25, 0.5])).tolist() == [-1, -1, 0, 0.5]  # of -0.5 ... at 1/2 and 5/2 steps


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize(
    ("shape", "size"), [((6, 5), 5), ((7, 11, 3, 3), 256), ((1000,), 1000), ((1000,), 37), ((9,), 1), ((), 1)]
)
def test_as_numpy_computes_it(shape, size, bits):
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(bits))
    expected = reference(weights.numpy(), size, bits)
    for got in (MinMax(size, bits)(weights).numpy(), decoded(MinMax(size, bits), weights)):
        np.testing.assert_allclose(got, expected, rtol=0, atol=4 * F32 * np.abs(weights.numpy()).max())


def test_buckets_without_a_range_stay_as_they_are():
    for weights in (torch.full((10,), 0.3), torch.tensor([0.3]), torch.tensor(0.3), torch.zeros(3, 4)):
        assert torch.equal(MinMax(4, 4)(weights), weights)
    tiny = torch.tensor([0.0, 3e-11, 9e-11])
    assert MinMax(3, 4)(tiny).tolist() == [0, 0, 0]


@pytest.mark.parametrize("style", ["straight-through", "truncated", "exact"])
def test_empty(style):
    weights = torch.randn(0, 3, requires_grad=True)
    quantizer = MinMax(1, 4, style)
    quantizer(weights).sum().backward()
    assert weights.grad.shape == (0, 3)
    indices, scale, offset, _ = quantizer.encode(weights)
    assert (indices.shape, scale.shape, offset.shape) == ((0, 1), (0,), (0,))


@pytest.mark.parametrize("factor", [1e-8, 1e-3, 1e6, 1e30])
def test_magnitudes(factor):
    weights = torch.randn(999, generator=torch.Generator().manual_seed(0), dtype=torch.float64).mul(factor).float()
    np.testing.assert_allclose(MinMax(100, 4)(weights).numpy(), reference(weights.numpy(), 100, 4), rtol=0, atol=4e-6 * factor)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_makes_its_bucket_so_and_no_other(bad):
    weights = torch.randn(8)
    weights[5] = bad
    made = MinMax(4, 4)(weights)
    assert made[:4].isfinite().all()
    assert made[4:].isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_quantized_as_its_values_are(dtype):
    weights = torch.randn(50, 7).to(dtype).requires_grad_()
    made = MinMax(32, 4)(weights)
    assert made.dtype == dtype
    assert torch.equal(made, MinMax(32, 4)(weights.detach().float()).to(dtype))
    made.sum().backward()
    assert weights.grad.dtype == dtype


def layouts():
    w = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0)) * 0.7
    yield w.contiguous(memory_format=torch.channels_last)
    yield w.transpose(0, 1).contiguous().transpose(0, 1)
    yield torch.stack([w, -w], dim=-1)[..., 0]


@pytest.mark.parametrize("style", ["straight-through", "truncated", "exact"])
@pytest.mark.parametrize("weights", layouts(), ids=["channels last", "transposed", "strided"])
def test_the_layout_in_memory_changes_no_number(weights, style):
    assert not weights.is_contiguous()
    slope = torch.randn(weights.shape)
    results = []
    for w in (weights.detach().clone(memory_format=torch.preserve_format), weights.contiguous()):
        w.requires_grad_()
        made = MinMax(32, 3, style)(w)
        (made * slope).sum().backward()
        results.append((made.detach(), w.grad))
        if w.is_contiguous(memory_format=torch.channels_last):
            assert made.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_stochastic_rounding_is_right_on_average_and_within_a_level():
    torch.manual_seed(0)
    weights = torch.randn(40)
    step = float(np.ptp(weights.numpy())) / 7
    quantizer = MinMax(40, 3, stochastic=True).train()
    drawn = torch.stack([quantizer(weights) for _ in range(4000)])
    assert (drawn - weights).abs().max() < step * (1 + 1e-5)
    assert len(drawn[:, 0].unique()) == 2
    # a mean of 4000 draws has a deviation of at most step / 2 / sqrt(4000); 5 of these
    assert (drawn.mean(0) - weights).abs().max() < 5 * step / 2 / 4000**0.5
    up = ((weights - weights.min()) / step).numpy() % 1
    variance = step**2 * up * (1 - up)
    np.testing.assert_allclose(drawn.var(0).numpy(), variance, rtol=0.25, atol=1e-4 * step**2)


def test_stochastic_rounding_leaves_weights_on_a_level_there():
    weights = torch.arange(256.0)
    quantizer = MinMax(256, 8, stochastic=True).train()
    assert all(torch.equal(quantizer(weights), weights) for _ in range(300))


def test_stochastic_rounding_never_goes_beyond_the_largest():
    torch.manual_seed(0)
    weights = torch.rand(2_000_000, 2)  # the largest is at 255.00002 steps in some of the buckets
    made = MinMax(2, 8, stochastic=True).train()(weights)
    assert float((made.amax(1) - weights.amax(1)).max()) < 1e-6


def test_stochastic_rounding_follows_the_seed_and_stops_in_evaluation():
    weights = torch.randn(100)
    quantizer = MinMax(100, 2, stochastic=True).train()
    torch.manual_seed(3)
    first, second = quantizer(weights), quantizer(weights)
    torch.manual_seed(3)
    assert torch.equal(quantizer(weights), first)
    assert not torch.equal(first, second)
    assert torch.equal(quantizer.eval()(weights), MinMax(100, 2)(weights))


def test_straight_through():
    weights = torch.randn(50, requires_grad=True)
    slope = torch.randn(50)
    (MinMax(8, 2)(weights) * slope).sum().backward()
    assert torch.equal(weights.grad, slope)


def test_truncated():
    weights = torch.tensor([-3.0, -1.0, -0.2, 0.6, 1.0, 1.5], requires_grad=True)
    made = MinMax(6, 2, "truncated")(weights)
    np.testing.assert_allclose(made.tolist(), [-1, -1, -1 / 3, 1 / 3, 1, 1], rtol=1e-6)
    (made * torch.arange(1.0, 7.0)).sum().backward()
    assert weights.grad.tolist() == [0, 2, 3, 4, 5, 0]
    np.testing.assert_allclose(decoded(MinMax(6, 2, "truncated"), weights), made.tolist(), rtol=1e-6)


def finite_differences(function, weights, step=1e-6):
    found = np.zeros(weights.size)
    for place in range(weights.size):
        high, low = weights.copy(), weights.copy()
        high.flat[place] += step
        low.flat[place] -= step
        found[place] = (function(high) - function(low)) / (2 * step)
    return found.reshape(weights.shape)


@pytest.mark.parametrize(
    "weights",
    [
        np.random.default_rng(0).normal(size=(5, 4)),
        np.concatenate([np.random.default_rng(1).normal(size=9), [7.0]]),  # the tail's last weight, repeated, is the largest
        np.concatenate([np.random.default_rng(1).normal(size=9), [-7.0]]),
        np.array([0.12, 2.0, 2.0, -1.0, -1.0, 0.73]),  # two that are largest, two smallest
        np.array([0.5, 0.7]),
    ],
    ids=["plain", "largest last", "smallest last", "ties", "short"],
)
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_the_exact_gradient_is_that_of_the_function_itself(weights, bits):
    slope = np.random.default_rng(5).normal(size=weights.shape)
    w = torch.from_numpy(weights).requires_grad_()
    (MinMax(6, bits, "exact")(w) * torch.from_numpy(slope)).sum().backward()
    expected = finite_differences(lambda x: float((reference(x, 6, bits) * slope).sum()), weights)
    np.testing.assert_allclose(w.grad.numpy(), expected, atol=1e-6)


def test_the_exact_gradient_of_equal_weights_is_equal():
    # alpha is the constant 1 and all weights go to beta, the smallest: each of the four is it as much as the others
    weights = torch.full((4,), 0.3, requires_grad=True)
    (MinMax(4, 3, "exact")(weights) * torch.tensor([1.0, 2.0, 3.0, 6.0])).sum().backward()
    assert weights.grad.tolist() == [3, 3, 3, 3]


sizes = st.integers(1, 40)
bits = st.integers(1, 8)
numbers = arrays(np.float32, array_shapes(max_dims=3, max_side=8), elements=st.floats(-100, 100, width=32))


def ranges(weights, size):
    """The range of each weight's bucket, of the weights' shape."""
    flat = weights.reshape(-1)
    made = [np.full(len(flat[i : i + size]), np.ptp(flat[i : i + size])) for i in range(0, len(flat), size)]
    return np.concatenate(made).reshape(weights.shape)


@settings(deadline=None)
@given(numbers, sizes, bits)
def test_quantizing_twice_is_quantizing_once(weights, size, bits):
    once = MinMax(size, bits)(torch.from_numpy(weights))
    twice = MinMax(size, bits)(once)
    np.testing.assert_allclose(twice.numpy(), once.numpy(), rtol=0, atol=4 * F32 * np.abs(weights).max(initial=0))


@settings(deadline=None)
@given(numbers, sizes, bits)
def test_within_half_a_step_and_the_extremes_stay(weights, size, bits):
    made = MinMax(size, bits)(torch.from_numpy(weights)).numpy().astype(np.float64)
    step, slack = ranges(weights, size) / (2**bits - 1), 4 * F32 * np.abs(weights).max(initial=0)
    assert (np.abs(made - weights) <= step / 2 + slack + 1e-10).all()
    flat, out = weights.reshape(-1), made.reshape(-1)
    for i in range(0, len(flat), size):
        for extreme in (np.argmin, np.argmax):
            at = extreme(flat[i : i + size]) + i
            assert abs(out[at] - flat[at]) <= slack + 1e-10


@settings(deadline=None)
@given(numbers, sizes, bits)
def test_a_larger_weight_of_a_bucket_is_never_quantized_to_less(weights, size, bits):
    made = MinMax(size, bits)(torch.from_numpy(weights)).numpy().reshape(-1)
    flat = weights.reshape(-1)
    for i in range(0, len(flat), size):
        order = np.argsort(flat[i : i + size], kind="stable")
        assert (np.diff(made[i : i + size][order]) >= 0).all()


@settings(deadline=None)
@given(numbers, sizes, bits, st.floats(0.01, 100), st.floats(-100, 100))
def test_scale_and_shift_go_through(weights, size, bits, a, b):
    spread = ranges(weights, size)
    assume(((spread == 0) | (spread > 1e-3)).all())
    moved = (weights.astype(np.float64) * a + b).astype(np.float32)
    made, after = (MinMax(size, bits)(torch.from_numpy(w)).numpy().astype(np.float64) for w in (weights, moved))
    step = spread * a / (2**bits - 1)
    difference = np.abs(after - (made * a + b))
    rounding = 8 * F32 * (np.abs(moved).max(initial=0) + np.abs(weights).max(initial=0) * a + abs(b)) + 1e-30
    # rounding of a weight that lies (as good as) between two levels may go either way
    safe = step > 0
    place = np.divide(weights - made, spread / (2**bits - 1), out=np.zeros_like(made), where=safe)
    between = safe & (np.abs(np.abs(place) - 0.5) * step <= 4 * rounding)
    assert (difference[~between] <= rounding).all()
    assert (difference[between] <= step[between] + rounding).all()


def test_every_number_of_levels_is_reached():
    for bits, size in itertools.product(range(1, 9), (256, 300)):
        made = MinMax(size, bits)(torch.linspace(-1, 1, size))
        assert len(made.unique()) == 2**bits
