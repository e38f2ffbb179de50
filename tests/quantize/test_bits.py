import itertools
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgekd.errors import BadInput
from edgekd.quantize import bits as module
from edgekd.quantize.bits import allocate, by_gradient_norm, gradient_norms, measure, table, weight_bytes


def test_points_by_gradient_norm_by_hand():
    # 3 tensors of 16 points on average: 8 for each, and 24 shared 1 : 2 : 3
    norms = {"a": 0.1, "b": 0.2, "c": 0.3}
    assert by_gradient_norm(norms, dict.fromkeys("abc", 1000), 16) == {"a": 12, "b": 16, "c": 20}
    # 2 for each, and 3 shared 1 : 1 : 2: 2.75, 2.75, 3.5; the two that rounding down leaves go to the largest remainders
    assert by_gradient_norm({"a": 1.0, "b": 1.0, "c": 2.0}, dict.fromkeys("abc", 1000), 3) == {"a": 3, "b": 3, "c": 3}
    assert by_gradient_norm({"a": 0.0, "b": 0.0}, dict.fromkeys("ab", 1000), 4) == {"a": 4, "b": 4}
    # at most 256, and no more than weights: what is left over goes to the others, in proportion again
    assert by_gradient_norm({"a": 100.0, "b": 1.0, "c": 1.0}, {"a": 1000, "b": 1000, "c": 9}, 128) == {
        "a": 256,
        "b": 119,
        "c": 9,
    }
    assert by_gradient_norm({"a": 1.0, "b": 0.0}, {"a": 3, "b": 1}, 16) == {"a": 3, "b": 2}


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.integers(1, 2000)), min_size=1, max_size=12),
    st.sampled_from([2, 3, 4, 8, 16, 100, 256]),
)
def test_points_add_up_and_keep_within_their_limits(tensors, levels):
    norms = {str(i): norm for i, (norm, _) in enumerate(tensors)}
    counts = {str(i): count for i, (_, count) in enumerate(tensors)}
    points = by_gradient_norm(norms, counts, levels)
    most = {name: min(256, max(2, count)) for name, count in counts.items()}
    assert all(min(max(2, levels // 2), most[name]) <= points[name] <= most[name] for name in norms)
    assert sum(points.values()) == min(levels * len(norms), sum(most.values()))
    for a, b in itertools.combinations(norms, 2):
        if norms[a] < norms[b] and most[a] <= most[b]:
            assert points[a] <= points[b]


def test_a_norm_that_is_no_number_is_refused():
    with pytest.raises(BadInput, match="`b` is nan"):
        by_gradient_norm({"a": 1.0, "b": float("nan")}, {"a": 9, "b": 9}, 4)


def test_gradient_norms_are_those_of_the_mean_loss():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))
    net[0].weight.requires_grad_(False)
    net[2].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    batches = [(torch.randn(7, 5), torch.randint(3, (7,))) for _ in range(5)]

    def loss(net, batch):
        return nn.functional.cross_entropy(net(batch[0]), batch[1])

    norms = gradient_norms(net, ["0.weight", "3.weight"], loss, batches)
    assert not net[0].weight.requires_grad
    assert net[3].weight.grad is None
    assert [m.training for m in net] == [True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    net.eval()
    for name, norm in norms.items():  # central differences of the mean loss
        weights, steps = net.get_parameter(name), []
        for place in range(weights.numel()):
            at = []
            for shift in (1e-2, -1e-2):
                with torch.no_grad():
                    weights.view(-1)[place] += shift
                    at.append(sum(float(loss(net, batch)) for batch in batches) / 5)
                    weights.view(-1)[place] -= shift
            steps.append((at[0] - at[1]) / 2e-2)
        assert norm == pytest.approx(np.linalg.norm(steps), rel=1e-3)


def test_damage_is_the_divergence_with_one_tensor_quantized():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).train()
    x = torch.randn(20, 6)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    seen = []
    found = measure(net, lambda net: net(x), {"0.weight": 30, "3.weight": 4}, (2, 4, 8), advance=lambda: seen.append(1))
    assert net.training
    assert len(seen) == 6
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())

    def logits(first, last):
        h = np.maximum((x.numpy() @ first.T + before["0.bias"].numpy()) / np.sqrt(1 + 1e-5), 0)
        return h @ last.T + before["3.bias"].numpy()

    def rounded(w, size, bits):
        flat, made = w.reshape(-1).astype(np.float64), []
        for start in range(0, len(flat), size):
            part = flat[start : start + size]
            step = np.ptp(part) / (2**bits - 1)
            made.append(np.round((part - part.min()) / step) * step + part.min())
        return np.concatenate(made).reshape(w.shape)

    def probabilities(z):
        e = np.exp(z - z.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    first, last = before["0.weight"].numpy(), before["3.weight"].numpy()
    p = probabilities(logits(first, last))
    for bits in (2, 4, 8):
        for name, pair in {
            "0.weight": (rounded(first, 30, bits), last),
            "3.weight": (first, rounded(last, 4, bits)),
        }.items():
            q = probabilities(logits(*pair))
            assert found[name][bits] == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-3, abs=1e-9)
    assert found["0.weight"][2] > found["0.weight"][4] > found["0.weight"][8] > 0


def test_a_failed_measurement_leaves_the_network_as_it_was():
    net = nn.Linear(3, 2)
    before, calls = net.weight.clone(), []

    def outputs(net):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return net(torch.ones(1, 3))

    with pytest.raises(RuntimeError, match="out of memory"):
        measure(net, outputs, {"weight": 6}, (2,))
    assert torch.equal(net.weight, before)
    assert net.training


def test_outputs_that_are_no_numbers_are_infinite_damage():
    net = nn.Linear(3, 2)
    whole = net.weight.detach().clone()
    found = measure(
        net, lambda net: net(torch.ones(1, 3)) * (1.0 if torch.equal(net.weight, whole) else float("nan")), {"weight": 6}, (1,)
    )
    assert found == {"weight": {1: float("inf")}}


def test_bytes_are_indices_and_a_scale_and_an_offset_a_bucket():
    # 100 weights in buckets of 32 (4 buckets): 4 bits are 50 bytes; 3 bits 37.5, so 38
    assert weight_bytes({"a": 100}, {"a": 32}, (3, 4)) == {"a": {3: 38 + 32, 4: 50 + 32}}


def best_of_all(sensitivity, sizes, budget):
    least = np.inf
    for choice in itertools.product(*sensitivity.values()):
        chosen = dict(zip(sensitivity, choice, strict=True))
        if sum(sizes[n][b] for n, b in chosen.items()) <= budget:
            least = min(least, sum(sensitivity[n][b] for n, b in chosen.items()))
    return least


def damage_of(sensitivity, chosen):
    return sum(sensitivity[name][bits] for name, bits in chosen.items())


def test_an_allocation_by_hand():
    sensitivity = {"a": {2: 1.0, 4: 0.1}, "b": {2: 0.5, 4: 0.2}}
    sizes = {"a": {2: 10, 4: 20}, "b": {2: 2, 4: 4}}
    assert allocate(sensitivity, sizes, 12) == {"a": 2, "b": 2}
    assert allocate(sensitivity, sizes, 21.9) == {"a": 2, "b": 4}
    assert allocate(sensitivity, sizes, 22) == {"a": 4, "b": 2}
    assert allocate(sensitivity, sizes, 24) == {"a": 4, "b": 4}
    counts = {"a": 40, "b": 8}
    assert table({"a": 4, "b": 2}, counts, sensitivity, sizes) == [
        {"name": "a", "count": 40, "bits": 4, "sensitivity": 0.1, "bytes": 20},
        {"name": "b", "count": 8, "bits": 2, "sensitivity": 0.5, "bytes": 2},
    ]


tensors = st.lists(
    st.dictionaries(st.integers(1, 8), st.tuples(st.floats(-0.125, 5, width=32), st.integers(1, 60)), min_size=1, max_size=4),
    min_size=1,
    max_size=5,
)


@settings(deadline=None, max_examples=300)
@given(tensors, st.lists(st.floats(0, 1), min_size=2, max_size=4))
def test_the_least_damage_that_fits_as_found_by_trying_all(drawn, shares):
    sensitivity = {str(i): {b: d for b, (d, _) in choices.items()} for i, choices in enumerate(drawn)}
    sizes = {str(i): {b: s for b, (_, s) in choices.items()} for i, choices in enumerate(drawn)}
    smallest, largest = (sum(f(c.values()) for c in sizes.values()) for f in (min, max))
    before = np.inf
    for share in sorted(shares):
        budget = smallest + round(share * (largest - smallest), 3)  # not a rounding error below a whole number of bytes
        chosen = allocate(sensitivity, sizes, budget)
        assert sum(sizes[name][bits] for name, bits in chosen.items()) <= budget
        damage = damage_of(sensitivity, chosen)
        assert damage == pytest.approx(best_of_all(sensitivity, sizes, budget), abs=1e-9)
        assert damage <= before + 1e-9  # more bytes, never more damage
        before = damage


def test_a_budget_below_the_smallest_size_is_refused():
    with pytest.raises(BadInput, match=r"1,000 bytes are too few.* take 1,210 bytes"):
        allocate({"a": {2: 1.0, 4: 0.5}, "b": {2: 1.0}}, {"a": {2: 1200, 4: 2400}, "b": {2: 10}}, 1000)


def test_choices_that_give_no_numbers_are_never_taken():
    sizes = {"a": {1: 1, 2: 2}}
    assert allocate({"a": {1: float("inf"), 2: 0.1}}, sizes, 5) == {"a": 2}
    with pytest.raises(BadInput, match="every choice for `a`"):
        allocate({"a": {1: float("inf"), 2: float("nan")}}, sizes, 5)


def large(tensors, seed=0):
    rng = np.random.default_rng(seed)
    counts = {str(i): int(10 ** rng.uniform(2, 6)) for i in range(tensors)}
    sizes = weight_bytes(counts, dict.fromkeys(counts, 256), range(2, 9))
    sensitivity = {
        n: {b: float(10 ** rng.uniform(-2, 1) * 4.0 ** -(b - 2) * rng.uniform(0.5, 2)) for b in range(2, 9)} for n in counts
    }
    return sensitivity, sizes, 0.5 * sum(counts.values())


def test_two_hundred_tensors_take_seconds():
    sensitivity, sizes, budget = large(200)
    began = time.perf_counter()
    chosen = allocate(sensitivity, sizes, budget)
    assert time.perf_counter() - began < 20
    assert sum(sizes[name][bits] for name, bits in chosen.items()) <= budget


def test_where_too_many_remain_the_result_is_still_at_least_the_greedy_one(monkeypatch):
    sensitivity, sizes, budget = large(12)
    exact = damage_of(sensitivity, allocate(sensitivity, sizes, budget))
    tensors = [module._Tensor(name, sensitivity[name], sizes[name]) for name in sensitivity]
    greedy = module._greedy(tensors, budget)[1]
    monkeypatch.setattr(module, "STATES", 2)
    few = damage_of(sensitivity, allocate(sensitivity, sizes, budget))
    assert exact <= few <= greedy + 1e-12
    assert exact < greedy
