import pytest
import torch

from edgekd.quantize.buckets import bucket_size, from_buckets, range_of, restored, to_buckets


@pytest.mark.parametrize(
    ("shape", "granularity", "group", "size"),
    [
        ((4, 3, 5, 5), "tensor", None, 300),
        ((4, 3, 5, 5), "channel", None, 75),
        ((2, 3, 4, 4), "channel", None, 48),  # of a transposed convolution from 2 to 3 channels: the input channels
        ((4, 3, 5, 5), "group", 256, 256),
        ((4, 3), "group", 256, 12),  # a tensor shorter than the bucket is one bucket
        ((4, 3), "group", 1, 1),
        ((7,), "channel", None, 1),
        ((), "channel", None, 1),
        ((), "tensor", None, 1),
        ((0, 5), "channel", None, 1),
        ((5, 0), "group", 256, 1),
    ],
)
def test_how_many_weights_share_a_scale(shape, granularity, group, size):
    assert bucket_size(shape, granularity, group) == size


def test_the_tail_is_filled_up_with_the_last_value():
    buckets = to_buckets(torch.arange(7.0), 3)
    assert buckets.tolist() == [[0, 1, 2], [3, 4, 5], [6, 6, 6]]
    assert from_buckets(buckets, (7,)).tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert to_buckets(torch.arange(6.0), 3).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 4), (5, 3), (2, 3, 4, 5)])
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_apart_and_together_again(shape, size):
    weights = torch.randn(shape)
    buckets = to_buckets(weights, size)
    assert buckets.shape == (-(-weights.numel() // size), size)
    assert torch.equal(from_buckets(buckets, weights.shape), weights)


def test_row_by_row_means_by_the_axes_not_by_memory():
    weights = torch.randn(4, 3, 2, 5)
    for other in (
        weights.contiguous(memory_format=torch.channels_last),
        weights.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
        torch.stack([weights, weights], dim=-1)[..., 0],  # every other number of memory
    ):
        assert not other.is_contiguous()
        assert torch.equal(to_buckets(other, 7), to_buckets(weights, 7))


def test_what_comes_back_lies_in_memory_as_before():
    weights = torch.randn(4, 3, 2, 5).contiguous(memory_format=torch.channels_last)
    made = restored(to_buckets(weights, 7), weights)
    assert torch.equal(made, weights)
    assert made.stride() == weights.stride()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_and_given_back(dtype):
    weights = torch.randn(5, 3).to(dtype)
    buckets = to_buckets(weights, 4)
    assert buckets.dtype == torch.float32
    assert torch.equal(buckets.flatten()[:15], weights.float().flatten())
    assert torch.equal(restored(buckets, weights), weights)
    assert restored(buckets, weights).dtype == dtype


def test_ranges():
    alpha, beta = range_of(torch.tensor([[-1.0, 3.0], [2.0, 2.0], [0.0, 9e-11], [0.0, 2e-10]]))
    torch.testing.assert_close(alpha, torch.tensor([[4.0], [1.0], [1.0], [2e-10]]))  # below 1e-10 counts as none
    assert beta.flatten().tolist() == [-1, 2, 0, 0]
    alpha, _ = range_of(torch.tensor([[0.0, float("nan")], [0.0, float("inf")]]))
    assert not alpha.isfinite().any()
