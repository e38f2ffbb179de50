"""The interpreter computes what torch does, on programs that coremltools made of torch modules and that were saved and read back."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from edgekd.backends import backend_of, coreml_package, mil
from edgekd.backends.coreml_program import convert
from edgekd.export.graph import Graph
from edgekd.parity import compare

pytest.importorskip("coremltools", reason="Core ML programs are made by coremltools")


class Does(nn.Module):
    """A function as a module."""

    def __init__(self, function, *parts):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, x):
        return self.function(x, *self.parts)


def attention(x):
    q, k, v = (x.flatten(2).transpose(1, 2)[..., i : i + 2] for i in (0, 2, 4))
    return functional.scaled_dot_product_attention(q, k, v)


def masked(x):
    q = x.flatten(2)
    mask = torch.full((6, 6), -1e4).triu(1)
    return functional.scaled_dot_product_attention(q, q + 1, q - 1, attn_mask=mask)


def norm_of(layer):
    for name in ("weight", "bias", "running_mean"):
        if getattr(layer, name, None) is not None:
            getattr(layer, name).data.normal_()
    return layer


C, H = 6, 8
CASES = {
    "conv": lambda: nn.Conv2d(C, 4, 3, padding=1),
    "conv, stride, dilation, groups": lambda: nn.Conv2d(C, 4, 3, 2, (2, 1), dilation=(2, 1), groups=2),
    "conv 1d": lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(C, 4, 5, 3, padding=2)),
    "depthwise, one-sided padding": lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(C, C, 3, 2, groups=C)),
    "transposed": lambda: nn.ConvTranspose2d(C, 4, 3, 2, 1, groups=2),
    "transposed, output padding": lambda: nn.ConvTranspose2d(C, 4, 3, 2, 1, output_padding=1),
    "max pool": lambda: Does(lambda x: functional.max_pool2d(-x.abs() - 1, 3, 2, 1)),
    "max pool, ceil": lambda: nn.MaxPool2d(3, 2, ceil_mode=True),
    "mean pool": lambda: nn.AvgPool2d(3, 2, 1),
    "mean pool, padding not counted": lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "mean over places": lambda: nn.AdaptiveAvgPool2d(1),
    "adaptive pool": lambda: nn.AdaptiveAvgPool2d(4),
    "batch norm alone": lambda: nn.Sequential(nn.ReLU(), norm_of(nn.BatchNorm2d(C))),
    "layer norm": lambda: norm_of(nn.LayerNorm(H)),
    "group norm": lambda: norm_of(nn.GroupNorm(3, C)),
    "instance norm": lambda: norm_of(nn.InstanceNorm2d(C, affine=True)),
    "linear": lambda: nn.Linear(H, 5),
    "linear without bias": lambda: nn.Linear(H, 5, bias=False),
    "multi-head attention": lambda: Does(lambda x, m: m(x[:, 0], x[:, 1], x[:, 2])[0], nn.MultiheadAttention(H, 2, batch_first=True)),
    "attention": lambda: Does(attention),
    "attention, mask": lambda: Does(masked),
    "matmul": lambda: Does(lambda x: x @ x.transpose(-1, -2)),
    "einsum": lambda: Does(lambda x: torch.einsum("nchw,nchv->ncwv", x, x + 1)),
    "softmax": lambda: nn.Softmax(1),
    "gelu": lambda: nn.Sequential(nn.GELU(), nn.GELU("tanh")),
    "activations": lambda: nn.Sequential(nn.Hardswish(), nn.SiLU(), nn.LeakyReLU(0.2), nn.ELU(0.5), nn.ReLU6(), nn.Hardsigmoid()),
    "prelu, softplus, tanh": lambda: nn.Sequential(nn.PReLU(C, 0.3), nn.Softplus(), nn.Tanh(), nn.Softsign()),
    "arithmetic": lambda: Does(lambda x: (x.abs() + 1).sqrt() / (x.square() + 2) - x.exp().clamp(max=3) * torch.rsqrt(x.abs() + 1)),
    "comparisons": lambda: Does(lambda x: torch.where((x > 0.5) | (x <= -0.5), x, -2 * x)),
    "minimum, maximum, power": lambda: Does(lambda x: torch.maximum(torch.minimum(x, x.flip(-1)), x**3)),
    "reductions": lambda: Does(lambda x: x.amax(1) + x.amin(1) + x.mean(1) + x.sum(1) + x.logsumexp(1) + x.norm(dim=1)),
    "largest": lambda: Does(lambda x: x.topk(3, 1)[0] + x.cumsum(2)[:, :3]),
    "argmax": lambda: Does(lambda x: x.argmax(1).float()),
    "reshape": lambda: Does(lambda x: x.reshape(1, 2, 3, H, H).permute(0, 2, 1, 4, 3).flatten(1, 2)),
    "window partition": lambda: Does(lambda x: x.view(1, C, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5).reshape(4, C, 16)),
    "slices": lambda: Does(lambda x: x[:, 1:, ::2, -3:] + x[:, :1, 1, 2:5][:, :, None]),
    "split, concat, stack": lambda: Does(lambda x: torch.stack(torch.cat(x.split([2, 4], 1)[::-1], 1).chunk(2, 1), 1)),
    "pads": lambda: nn.Sequential(nn.ReflectionPad2d(2), nn.ReplicationPad2d((1, 0, 0, 1)), nn.ConstantPad2d((0, 1, 2, 0), 0.5)),
    "roll, repeat, expand": lambda: Does(lambda x: x.roll(3, 2).repeat(1, 2, 1, 1)[:, :1].expand(-1, 3, -1, -1)),
    "lookup": lambda: Does(lambda x: x[:, torch.tensor([2, 0, 5, 5])] + x.index_select(1, torch.tensor([1]))),
    "gather": lambda: Does(lambda x: torch.gather(x, 1, x.argsort(1))),
    "lookup on two axes": lambda: Does(lambda x: x[:, torch.tensor([2, 0, 5]), torch.tensor([1, -1, 4])] + x[0, 1, 2, 3]),
    "ones, choice between a tensor and a number": lambda: Does(lambda x: torch.where(x > 0.1, x, 2.0) + x.new_ones(1, C, H, 1)),
    "resize": lambda: Does(lambda x: functional.interpolate(x, size=(12, 5), mode="bilinear").mean(3) + functional.interpolate(x, scale_factor=2)[..., :12, 0]),
    "resize, corners": lambda: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
    "shuffle": lambda: nn.Sequential(nn.Conv2d(C, 8, 1), nn.PixelShuffle(2), nn.PixelUnshuffle(4)),
}  # fmt: skip


@pytest.mark.parametrize("release", ["iOS17", "iOS18"])
def test_each_kind_of_layer_equals_torch(tmp_path, release):
    """All in one program a release: a conversion takes a second, whatever it converts."""
    torch.manual_seed(0)
    layers = nn.ModuleList(make() for make in CASES.values()).eval()

    class All(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = layers

        def forward(self, x):
            return tuple(layer(x) for layer in self.layers)

    x = torch.randn(1, C, H, H)
    outputs = tuple(f"y{i}" for i in range(len(layers)))
    model = convert(Graph("all", All(), ("x",), outputs, {"x": x}), {}, release, half=False)
    program = mil.read(coreml_package.write(model, tmp_path / "all.mlpackage"))
    made = mil.run(program, {"x": x.numpy()})
    with torch.no_grad():
        expected = [layer(x).numpy() for layer in layers]
    apart = {
        name: near.reason or near.sqnr_db
        for name, output, reference in zip(CASES, outputs, expected, strict=True)
        if (near := compare({"y": reference}, {"y": made[output]})).reason or near.sqnr_db < 100
    }
    assert not apart
    kinds = {operation.kind for operation in program.operations}
    assert len(kinds) > 45  # nothing was folded away
    assert ("scaled_dot_product_attention" in kinds) == (release == "iOS18")


def test_a_mask_of_the_smallest_float32_is_a_number_in_16_bits(tmp_path):
    """0 times -inf would be NaN: ALBERT's masks are (1 - mask) times the smallest float32, ModernBERT's hold it."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("far", torch.full((1, 1, H, H), torch.finfo(torch.float32).min).triu(3))

        def forward(self, x):
            real = (x[:, :1, :1] < 1.5).float()
            return ((1.0 - real) * torch.finfo(torch.float32).min + self.far + x).softmax(-1)

    x = torch.randn(1, C, H, H)
    graph = Graph("masked", Masked(), ("x",), ("y",), {"x": x})
    file = coreml_package.write(convert(graph, {}, "iOS18", half=True), tmp_path / "masked.mlpackage")
    made = backend_of("coreml").load(file).run({"x": x.numpy()})["y"]
    with torch.no_grad():
        expected = Masked()(x).numpy()
    assert (expected == 0).any()
    np.testing.assert_allclose(made, expected, atol=2e-3)


def test_a_row_that_sees_nothing_stays_a_number_in_16_bits(tmp_path):
    """The smallest float32 comes from a fill, which is folded into a constant late; padding after a text sees nothing in a window."""
    nothing = Does(lambda x: torch.where(x > 99, x, torch.full((H,), torch.finfo(torch.float32).min)).softmax(-1) * 0 + x)
    x = torch.randn(1, C, H, H)
    file = coreml_package.write(
        convert(Graph("nothing", nothing, ("x",), ("y",), {"x": x}), {}, "iOS18", half=True), tmp_path / "nothing.mlpackage"
    )
    made = backend_of("coreml").load(file).run({"x": x.numpy()})["y"]
    np.testing.assert_allclose(made, x.numpy(), atol=4e-3)


@pytest.mark.parametrize("both", [False, True])
def test_lstm_equals_torch(tmp_path, both):
    """Every output, and the last states; of two layers, the second without biases."""
    torch.manual_seed(0)
    first = nn.LSTM(H, 5, batch_first=True, bidirectional=both)
    second = nn.LSTM(10 if both else 5, 3, bidirectional=both, bias=False)
    net = Does(lambda x, a, b: (b(a(x[:, 0])[0])[0], *a(x[:, 1])[1]), first, second).eval()
    x = torch.randn(1, C, H, H)
    graph = Graph("g", net, ("x",), ("y", "h", "c"), {"x": x})
    program = mil.read(coreml_package.write(convert(graph, {}, "iOS17", half=False), tmp_path / "g.mlpackage"))
    made = mil.run(program, {"x": x.numpy()})
    with torch.no_grad():
        expected = net(x)
    for name, value in zip(("y", "h", "c"), expected, strict=True):
        assert compare({"y": value.numpy()}, {"y": made[name]}).sqnr_db > 100, name


def test_half_precision_is_rounded_after_each_operation(tmp_path):
    x = torch.linspace(0.1, 3, 64).reshape(1, 1, 8, 8)
    graph = Graph("g", Does(lambda x: (x * 1.001).exp() + 0.3), ("x",), ("y",), {"x": x})
    program = mil.read(coreml_package.write(convert(graph, {}, "iOS17"), tmp_path / "g.mlpackage"))
    half = np.float16
    by_hand = (np.exp((x.numpy().astype(half) * half(1.001)).astype(np.float32)).astype(half) + half(0.3)).astype(np.float32)
    made = mil.run(program, {"x": x.numpy()})["y"]
    assert np.array_equal(made, by_hand)
    exact = mil.run(program, {"x": x.numpy()}, exact=True)["y"]
    assert np.allclose(exact, np.exp(x.numpy() * np.float32(half(1.001))) + np.float32(half(0.3)), rtol=1e-6)
    assert not np.array_equal(exact, made)
