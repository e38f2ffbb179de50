import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgekd.quantize import codebook
from edgekd.quantize.codebook import Codebook, nearest, quantiles
from edgekd.quantize.uniform import MinMax


def reference(weights: np.ndarray, points: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """In float64, a bucket at a time: (w_q, index of each weight's nearest point, alpha of each weight)."""
    flat, points = weights.astype(np.float64).reshape(-1), points.astype(np.float64)
    made, indices, alphas = [], [], []
    for start in range(0, len(flat), size):
        bucket = flat[start : start + size]
        beta, alpha = bucket.min(), np.ptp(bucket)
        alpha = 0.0 if alpha < 1e-10 else alpha  # a constant bucket stays as it is
        index = np.abs(((bucket - beta) / (alpha or 1))[:, None] - points).argmin(1)  # the first of equally near ones
        made.append(alpha * points[index] + beta)
        indices.append(index)
        alphas.append(np.full(len(bucket), alpha))
    return np.concatenate(made).reshape(weights.shape), np.concatenate(indices), np.concatenate(alphas)


def with_points(size, points, weights):
    book = Codebook(size, len(points), weights)
    with torch.no_grad():
        book.points.copy_(torch.as_tensor(points))
    return book


def test_numbers_worked_by_hand():
    weights = torch.tensor([-1.0, -0.75, 1.0, 3.0])  # v = 0, 1/16, 1/2, 1
    book = with_points(4, [0.125, 0.75, 0.5], weights)
    assert book(weights).tolist() == [-0.5, -0.5, 1, 2]
    (book(weights) * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert book.points.grad.tolist() == [12, 16, 12]  # alpha 4 times 1 + 2, times 4 (the point 0.75), times 3


def search(values, points):
    middles = (points[1:] + points[:-1]) / 2
    return np.searchsorted(middles, values)  # how many middles are below


BOOKS = {
    "two": [0.25, 0.75],
    "even": np.linspace(0, 1, 16),
    "256": np.linspace(0, 1, 256),
    "random 256": np.sort(np.random.default_rng(0).random(256)),
    "quantiles": np.sort(np.random.default_rng(0).normal(0.5, 0.1, 256)),
    "some equal": [0.0, 0.1, 0.1, 0.1, 0.5, 0.5, 0.9, 1.0],
    "all equal": [0.3] * 16,
    "crowded": np.concatenate([[0.0], 0.4 + np.arange(14) * 1e-5, [1.0]]),
    "as close as can be": [0.5, np.nextafter(np.float32(0.5), np.float32(1)), 1.0],
    "beyond the ends": [-3.0, -0.2, 0.4, 1.7, 2.5],
}


@pytest.mark.parametrize("count", [10, 50_000, 300_000])
@pytest.mark.parametrize("points", BOOKS.values(), ids=BOOKS)
def test_the_nearest_point_is_that_of_a_search(points, count):
    points = np.sort(np.asarray(points, np.float32))
    rng = np.random.default_rng(1)
    middles = (points[1:] + points[:-1]) / 2
    around = [f(m, np.float32(to)) for m in middles for f, to in ((np.nextafter, 9), (np.nextafter, -9))]
    edges = np.concatenate([np.arange(codebook.CELLS + 1, dtype=np.float32) / codebook.CELLS, middles, around, points])
    values = np.concatenate([rng.random(count, dtype=np.float32), *[edges] * (count > 10)]).astype(np.float32)
    found, chosen = nearest(torch.from_numpy(values), torch.from_numpy(points))
    np.testing.assert_array_equal(found.numpy(), search(values, points))
    np.testing.assert_array_equal(chosen.numpy(), points[search(values, points)])
    some = values[-20_000:]
    distance = np.abs(points[found.numpy()[-20_000:]].astype(np.float64) - some)
    assert (distance <= np.abs(points.astype(np.float64) - some[:, None]).min(1) + 1e-7).all()


def test_values_outside_and_of_any_shape():
    values = torch.cat([torch.linspace(-50, 50, 30_001), torch.tensor([1e30, -1e30, float("inf"), -float("inf")])])
    points = torch.tensor([-40.0, 0.1, 0.2, 1.5, 33.0])
    np.testing.assert_array_equal(nearest(values, points)[0].numpy(), search(values.numpy(), points.numpy()))
    grid = torch.rand(100, 3, 100).transpose(0, 2)
    book = torch.rand(16).sort().values
    found, chosen = nearest(grid, book)
    assert found.shape == (100, 3, 100)
    np.testing.assert_array_equal(found.numpy(), search(grid.numpy(), book.numpy()))
    np.testing.assert_array_equal(chosen.numpy(), book.numpy()[found.numpy()])
    strange = torch.rand(30_000)
    strange[::7] = float("nan")
    assert nearest(strange, book)[0].max() <= 15


def test_the_lower_of_two_equally_near_points():
    assert nearest(torch.tensor([0.25, 0.5, 0.75]), torch.tensor([0.0, 0.5, 1.0]))[0].tolist() == [0, 1, 1]


@settings(deadline=None, max_examples=50)
@given(
    arrays(np.float32, st.integers(2, 256), elements=st.floats(-0.5, 1.5, width=32)),
    arrays(np.float32, 100, elements=st.floats(0, 1, width=32)),
)
def test_the_table_and_the_search_agree(points, values):
    points = np.sort(points)
    many = np.concatenate([values, np.random.default_rng(0).random(2 * codebook.CELLS, dtype=np.float32)])
    found, _ = nearest(torch.from_numpy(many), torch.from_numpy(points))
    np.testing.assert_array_equal(found.numpy(), search(many, points))


@pytest.mark.parametrize(
    ("shape", "size"), [((6, 5), 5), ((7, 11, 3, 3), 256), ((1000,), 1000), ((100, 200), 37), ((9,), 1), ((), 1)]
)
@pytest.mark.parametrize("count", [2, 5, 16, 256])
def test_as_numpy_computes_it(shape, size, count):
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(count))
    book = Codebook(size, count, weights)
    with torch.no_grad():
        book.points += torch.randn(count, generator=torch.Generator().manual_seed(1)) * 0.02  # without ties in float32
    points = np.sort(book.points.detach().numpy())
    expected, index, alpha = reference(weights.numpy(), points, size)
    slope = torch.randn(shape)
    made = book(weights)
    (made * slope).sum().backward()
    np.testing.assert_allclose(made.detach().numpy(), expected, atol=1e-5)
    of_points = np.zeros(count)
    np.add.at(of_points, index, alpha * slope.numpy().astype(np.float64).reshape(-1))
    np.testing.assert_allclose(book.points.grad[book.points.argsort(stable=True)].numpy(), of_points, rtol=1e-4, atol=1e-4)

    indices, scale, offset, own = book.encode(weights)
    assert indices.dtype == torch.uint8
    assert (np.diff(own.numpy()) >= 0).all()
    values = own.numpy()[indices.numpy()] * scale.numpy()[:, None] + offset.numpy()[:, None]
    np.testing.assert_allclose(values.reshape(-1)[: weights.numel()].reshape(shape), expected, atol=1e-5)


def test_points_get_the_gradient_of_the_function_itself():
    weights = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    slope = torch.randn(50, dtype=torch.float64)
    book = Codebook(16, 5, weights).double()
    (book(weights) * slope).sum().backward()
    for place in range(5):
        at = []
        for shift in (1e-6, -1e-6):
            with torch.no_grad():
                book.points[place] += shift
                at.append(float((book(weights) * slope).sum()))
                book.points[place] -= shift
        assert float(book.points.grad[place]) == pytest.approx((at[0] - at[1]) / 2e-6, abs=1e-6)


def test_sums_by_products_are_the_same():
    values, indices = torch.randn(10_000), torch.randint(0, 16, (10_000,), dtype=torch.uint8)
    expected = np.zeros(16)
    np.add.at(expected, indices.numpy(), values.numpy().astype(np.float64))
    np.testing.assert_allclose(codebook.sums(indices, values, 16).numpy(), expected, atol=1e-9)
    for most in (2**25, 16 * 3000):
        found = codebook.sums_by_products(indices, values, 16, most)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-3)


def test_quantiles_have_as_many_values_around_each():
    values = torch.arange(100.0)[torch.randperm(100)]
    np.testing.assert_allclose(quantiles(values, 4).numpy(), [12.375, 37.125, 61.875, 86.625])
    for count in (2, 16, 100, 256):
        values = torch.randn(5000)
        expected = np.quantile(values.numpy().astype(np.float64), (np.arange(count) + 0.5) / count)
        np.testing.assert_allclose(quantiles(values, count).numpy(), expected, rtol=1e-6)
    book = Codebook(5000, 16, values)
    counts = np.bincount(book.encode(values)[0].numpy().reshape(-1), minlength=16)
    assert counts.min() > 5000 / 16 * 0.7
    assert quantiles(torch.zeros(0), 3).tolist() == [0, 0.5, 1]


def test_quantiles_leave_padding_out():
    weights = torch.cat([torch.linspace(0, 1, 11), torch.tensor([1.0, 3.0])])  # v = 0 ... 1; then 0, and 1 with 9 copies
    expected = np.quantile(np.append(np.linspace(0, 1, 11), [0.0, 1.0]), [0.125, 0.375, 0.625, 0.875])
    np.testing.assert_allclose(Codebook(11, 4, weights).points.detach().numpy(), expected, rtol=1e-5)


def test_a_dead_filter_stays_and_moves_no_point():
    weights = torch.randn(64, 288, generator=torch.Generator().manual_seed(0)) * 0.02
    weights[7], weights[9] = 0, -0.3
    others = [i for i in range(64) if i not in (7, 9)]
    book = Codebook(288, 4, weights)
    made = book(weights)
    assert torch.equal(made[[7, 9]], weights[[7, 9]])
    assert (made - weights).abs()[others].max() < 0.1
    rows = weights[others].double().numpy()
    scaled = (rows - rows.min(1, keepdims=True)) / np.ptp(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(book.points.detach().numpy(), np.quantile(scaled, [0.125, 0.375, 0.625, 0.875]), rtol=1e-5)
    made[[7, 9]].sum().backward()
    assert book.points.grad.tolist() == [0, 0, 0, 0]
    _, scale, offset, _ = book.encode(weights)
    assert (scale[[7, 9]].tolist(), offset[[7, 9]].tolist()) == ([0, 0], [0, pytest.approx(-0.3)])


def test_a_tail_of_one_stays():
    weights = torch.randn(1, 257, generator=torch.Generator().manual_seed(0)) * 0.02
    assert Codebook(256, 4, weights)(weights)[0, -1] == weights[0, -1]


def test_a_constant_bucket_in_a_given_range_stays_at_its_level_whatever_the_points_do():
    weights = torch.tensor([[-1.0, 0.0, 1.0, 2.0], [0.3, 0.3, 0.3, 0.3]])
    book = Codebook(4, 4, weights, uniform=True, ranges=(torch.tensor([3.0, 0.75]), torch.tensor([-1.0, 0.0])))
    torch.testing.assert_close(book(weights), torch.tensor([[-1.0, 0, 1, 2], [0.25] * 4]))
    with torch.no_grad():
        book.points.add_(0.1)
    assert book(weights)[1].tolist() == [0.25] * 4
    book(weights)[1].sum().backward()
    assert book.points.grad.tolist() == [0, 0, 0, 0]


@settings(deadline=None, max_examples=50)
@given(arrays(np.float32, st.integers(1, 300), elements=st.floats(-10, 10, width=32)), st.integers(1, 300), st.integers(1, 8))
def test_evenly_spaced_points_are_the_uniform_quantizer(weights, size, bits):
    w = torch.from_numpy(weights)
    even, uniform = Codebook(size, 2**bits, w, uniform=True)(w).detach().numpy(), MinMax(size, bits)(w).numpy()
    flat = [weights[i : i + size] for i in range(0, len(weights), size)]
    step = np.concatenate([np.full(len(b), np.ptp(b) / (2**bits - 1)) for b in flat])
    other = np.abs(even - uniform) > 1e-5
    assert (np.abs(even - uniform) <= step + 1e-5).all()
    # another level only in the middle between two, where one goes down and the other to the even one
    assert (np.abs(np.abs(weights - uniform)[other] / step[other] - 0.5) < 1e-3).all()


def test_after_a_quantized_distillation_they_are_its_result():
    weights = torch.randn(30_000)
    assert torch.allclose(Codebook(256, 16, weights, uniform=True)(weights), MinMax(256, 4)(weights), atol=1e-6)


def test_ranges_that_are_given_stay():
    weights = torch.tensor([-4.0, -1.0, 0.2, 1.0, 7.0])
    book = Codebook(5, 3, weights, uniform=True, ranges=(torch.tensor([-2.0]), torch.tensor([-1.0])))
    assert book(weights).tolist() == [-1, -1, 0, 1, 1]  # from -1 to 1 in two steps; what lies beyond goes to the ends
    assert {"alpha", "beta", "points"} == set(book.state_dict())
    indices, scale, offset, points = book.encode(weights)
    assert (indices.tolist(), scale.tolist(), offset.tolist(), points.tolist()) == ([[0, 0, 1, 2, 2]], [2], [-1], [0, 0.5, 1])


def test_points_may_cross():
    weights = torch.randn(1000)
    book = with_points(256, [0.9, 0.1, 0.5], weights)
    same = with_points(256, [0.1, 0.5, 0.9], weights)
    slope = torch.randn(1000)
    for one in (book, same):
        (one(weights) * slope).sum().backward()
    assert torch.equal(book(weights), same(weights))
    assert torch.equal(book.points.grad[[1, 2, 0]], same.points.grad)


def test_training_the_points_brings_the_weights_nearer():
    torch.manual_seed(0)
    weights = torch.randn(4000)
    book = Codebook(256, 4, weights)
    optimizer, errors = torch.optim.Adam(book.parameters(), lr=0.01), []
    for _ in range(200):
        error = (book(weights) - weights).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.8 * errors[0]
    assert errors[-1] < 0.14  # Max 1960: 0.1175 sigma^2 at best, with a range that is not each bucket's own


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_quantized_as_its_values_are(dtype):
    weights = torch.randn(50, 7).to(dtype).requires_grad_()
    book = Codebook(32, 16, weights)
    assert book.points.dtype == torch.float32
    made = book(weights)
    assert made.dtype == dtype
    assert torch.equal(made, book(weights.detach().float()).to(dtype))
    made.sum().backward()
    assert weights.grad.dtype == dtype
    assert book.points.grad.dtype == torch.float32


def test_the_layout_in_memory_changes_no_number():
    weights = torch.randn(8, 5, 3, 3)
    last = weights.contiguous(memory_format=torch.channels_last).requires_grad_()
    book, slope = Codebook(32, 16, weights), torch.randn(8, 5, 3, 3)
    made = book(last)
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(made, book(weights))
    (made * slope).sum().backward()
    of_last = book.points.grad.clone()
    book.points.grad = None
    (book(weights) * slope).sum().backward()
    assert torch.equal(of_last, book.points.grad)
    assert torch.equal(last.grad, slope)  # straight-through


def test_frozen_weights_get_no_gradient_and_empty_ones_do_no_harm():
    book = Codebook(8, 4, torch.randn(20))
    frozen = torch.randn(20)
    book(frozen).sum().backward()
    assert frozen.grad is None
    empty = Codebook(8, 4, torch.zeros(0, 3))
    assert empty(torch.zeros(0, 3)).shape == (0, 3)
    assert empty.encode(torch.zeros(0, 3))[0].shape == (0, 8)


def test_what_is_no_number_makes_its_bucket_so_and_no_other():
    weights = torch.randn(30_000)
    book = Codebook(1000, 16, weights)
    weights[5] = float("nan")
    weights[1005] = float("inf")
    made = book(weights)
    assert not made[:2000].isfinite().any()
    assert made[2000:].isfinite().all()
