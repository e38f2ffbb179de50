"""Programs written with coremltools' builder and read back: values by hand, and what must not pass unseen."""

import numpy as np
import pytest
import torch

from edgekd.backends import coreml_package, mil
from edgekd.backends.coreml_program import quiet
from edgekd.backends.mil.checks import bad_constants, bad_values
from edgekd.backends.mil.run import OPERATIONS, Runner
from edgekd.errors import BadInput

ct = pytest.importorskip("coremltools", reason="Core ML programs are made by coremltools")


def saved(folder, build, shape=(2, 4), release="iOS17", half=False):
    """Build a program of one input `x`, save it as it is, and read it."""
    from coremltools.converters.mil.mil import Builder as mb

    with quiet():
        program = mb.program(input_specs=[mb.TensorSpec(shape=shape)], opset_version=getattr(ct.target, release))(
            lambda x: build(mb, x)
        )
        kept = ct.PassPipeline.DEFAULT if half else ct.PassPipeline.EMPTY
        model = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=getattr(ct.target, release),
            compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
            pass_pipeline=kept,
            skip_model_load=True,
        )
    return coreml_package.write(model, folder / "program.mlpackage")


def output(path, x, exact=False):
    return next(iter(mil.run(mil.read(path), {"x": x}, exact).values()))


X = np.array([[-2, -0.5, 0.5, 2], [1, 2, 3, 4]], np.float32)
BY_HAND = {
    "clip": (lambda mb, x: mb.clip(x=x, alpha=-1.0, beta=1.5), np.clip(X, -1, 1.5)),
    "threshold": (lambda mb, x: mb.threshold(x=x, alpha=0.7), np.maximum(X, 0.7)),
    "inverse": (lambda mb, x: mb.inverse(x=x, epsilon=0.25), 1 / (X + 0.25)),
    "log": (lambda mb, x: mb.log(x=mb.abs(x=x), epsilon=0.5), np.log(np.abs(X) + 0.5)),
    "floor_div": (lambda mb, x: mb.floor_div(x=x, y=0.75), np.floor(X / 0.75)),
    "scaled_tanh": (lambda mb, x: mb.scaled_tanh(x=x, alpha=2.0, beta=0.5), 2 * np.tanh(X / 2)),
    "sigmoid_hard": (lambda mb, x: mb.sigmoid_hard(x=x, alpha=0.3, beta=0.4), np.clip(0.3 * X + 0.4, 0, 1)),
    "thresholded_relu": (lambda mb, x: mb.thresholded_relu(x=x, alpha=0.5), np.where(X >= 0.5, X, 0)),
    "one_hot": (lambda mb, x: mb.add(x=x, y=mb.one_hot(indices=[0, 3], one_hot_vector_size=4, on_value=5.0, off_value=1.0)),
                X + np.array([[5, 1, 1, 1], [1, 1, 1, 5]])),
    "cumsum": (lambda mb, x: mb.cumsum(x=x, axis=1, exclusive=True, reverse=True), np.cumsum(X[:, ::-1], 1)[:, ::-1] - X),
    "slice backwards": (lambda mb, x: mb.slice_by_index(x=x, begin=[0, 3], end=[2, 0], stride=[1, -2], begin_mask=[True, False]),
                        X[:, 3:0:-2]),
    "slice_by_size": (lambda mb, x: mb.slice_by_size(x=x, begin=[1, 1], size=[1, -1]), X[1:, 1:]),
    "concat, interleaved": (lambda mb, x: mb.concat(values=[x, mb.mul(x=x, y=2.0)], axis=0, interleave=True),
                            np.stack([X[0], 2 * X[0], X[1], 2 * X[1]])),
    "band_part": (lambda mb, x: mb.band_part(x=x, lower=0, upper=1), np.triu(X) * np.tri(2, 4, 1)),
    "reduce_l1_norm": (lambda mb, x: mb.reduce_l1_norm(x=x, axes=[1], keep_dims=True), np.abs(X).sum(1, keepdims=True)),
    "reduce_sum_square": (lambda mb, x: mb.reduce_sum_square(x=x, axes=[0]), (X**2).sum(0)),
    "same pads": (lambda mb, x: mb.max_pool(x=mb.expand_dims(x=x, axes=[0]), kernel_sizes=[2], strides=[1], pad_type="same"),
                  np.maximum(X, np.roll(X, -1, 1) * [1, 1, 1, 0] + [0, 0, 0, -99])[None]),
    "layer norm over rows": (lambda mb, x: mb.layer_norm(x=x, axes=[0], epsilon=0.0),
                             (X - X.mean(0)) / X.std(0)),
    "depth to space": (lambda mb, x: mb.depth_to_space(x=mb.reshape(x=x, shape=[1, 8, 1, 1]), block_size=2),
                       X.reshape(2, 2, 2).transpose(2, 0, 1)[None]),
    "topk": (lambda mb, x: mb.topk(x=x, k=2, axis=1, ascending=True)[0], np.sort(X, 1)[:, :2]),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_values_by_hand(tmp_path, name):
    build, expected = BY_HAND[name]
    made = output(saved(tmp_path, build), X)
    assert made.shape == expected.shape
    assert np.allclose(made, expected, rtol=1e-5, atol=1e-6)


CONSTANTS = {
    "affine": ("iOS17", lambda mb: mb.constexpr_affine_dequantize(
        quantized_data=np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.uint8), zero_point=np.array([1, 4], np.uint8),
        scale=np.array([0.5, 2], np.float32), axis=np.int32(0)), [[0, 0.5, 1, 1.5], [2, 4, 6, 8]]),
    "palette of 2 bits": ("iOS17", lambda mb: mb.constexpr_lut_to_dense(
        indices=np.array([0b11100100, 0b00011011], np.uint8), lut=np.array([5, 6, 7, 8], np.float32),
        shape=np.array([2, 4], np.uint32)), [[5, 6, 7, 8], [8, 7, 6, 5]]),
    "palette of 6 bits": ("iOS17", lambda mb: mb.constexpr_lut_to_dense(
        indices=np.packbits([[i >> b & 1 for b in range(6)] for i in (0, 63, 1, 2, 33, 7, 8, 9)], bitorder="little"),
        lut=np.arange(64, dtype=np.float32), shape=np.array([2, 4], np.uint32)), [[0, 63, 1, 2], [33, 7, 8, 9]]),
    "palette a row": ("iOS18", lambda mb: mb.constexpr_lut_to_dense(
        indices=four_bits(mb, [[0, 1, 15, 2], [0, 1, 15, 2]]),
        lut=np.arange(32, dtype=np.float32).reshape(2, 1, 16, 1)), [[0, 1, 15, 2], [16, 17, 31, 18]]),
    "blocks": ("iOS18", lambda mb: mb.constexpr_blockwise_shift_scale(
        data=np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.int8), scale=np.array([[1, 10], [2, 20]], np.float32),
        offset=np.array([[1, 1], [0.5, 0]], np.float32)), [[0, 1, 20, 30], [9, 11, 140, 160]]),
    "sparse": ("iOS17", lambda mb: mb.constexpr_sparse_to_dense(
        nonzero_data=np.array([3, 4, 5], np.float32), mask=np.array([0b10010100], np.uint8),
        shape=np.array([2, 4], np.uint32)), [[0, 0, 3, 0], [4, 0, 0, 5]]),
}  # fmt: skip


def four_bits(mb, values):
    from coremltools.converters.mil.mil import types

    return np.array(values).astype(types.nptype_from_builtin(types.uint4))


@pytest.mark.parametrize("name", CONSTANTS)
def test_compressed_constants_by_hand(tmp_path, name):
    release, build, expected = CONSTANTS[name]
    path = saved(tmp_path, lambda mb, x: mb.add(x=x, y=build(mb)), release=release)
    assert np.array_equal(output(path, X), X + np.array(expected, np.float32))
    assert any(operation.kind.startswith("constexpr_") for operation in mil.read(path).operations)


def test_an_operation_that_is_not_known_is_an_error(tmp_path, monkeypatch):
    path = saved(tmp_path, lambda mb, x: mb.relu(x=mb.erf(x=x)))
    monkeypatch.delitem(OPERATIONS, "erf")
    with pytest.raises(BadInput, match="does not know erf"):
        Runner(mil.read(path), exact=True)
    assert "does not know erf" in bad_values(mil.read(path), {"x": X})[0]


def test_a_parameter_s_value_that_is_not_known_is_an_error(tmp_path):
    path = saved(tmp_path, lambda mb, x: mb.resize_bilinear(
        x=mb.expand_dims(x=x, axes=[0, 1]), target_size_height=4, target_size_width=8, sampling_mode="OFFSET_CORNERS"))  # fmt: skip
    with pytest.raises(BadInput, match=r"\(resize_bilinear\): sampling_mode = 'OFFSET_CORNERS'"):
        output(path, X)


def test_a_parameter_that_is_not_known_is_an_error(tmp_path, monkeypatch):
    path = saved(tmp_path, lambda mb, x: mb.elu(x=x, alpha=2.0))
    monkeypatch.setitem(OPERATIONS, "elu", lambda *, x: x)
    with pytest.raises(BadInput, match=r"\(elu\).*alpha"):
        output(path, X)


def test_an_output_of_another_shape_than_declared_is_an_error(tmp_path, monkeypatch):
    path = saved(tmp_path, lambda mb, x: mb.relu(x=x))
    monkeypatch.setitem(OPERATIONS, "relu", lambda *, x: x[:1])
    with pytest.raises(BadInput, match=r"made \(1, 4\), and the program declares \(2, 4\)"):
        output(path, X)


def test_a_file_that_is_no_program_is_bad_input(tmp_path):
    path = saved(tmp_path, lambda mb, x: mb.relu(x=x))
    (path / "Data/com.apple.CoreML/model.mlmodel").write_bytes(b"\x00\x01damaged")
    with pytest.raises(BadInput, match="cannot be read as a Core ML program"):
        mil.read(path)


# --- numbers that no device computes with ---------------------------------------------------------


@pytest.mark.parametrize(("planted", "told"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_a_constant_that_is_no_number_is_named(tmp_path, planted, told):
    values = np.ones((4, 4), np.float32)
    values[1, 2] = planted
    program = mil.read(saved(tmp_path, lambda mb, x: mb.matmul(x=x, y=values, name="head"), half=True))
    (said,) = bad_constants(program)
    assert said.startswith("operation head")
    assert "(matmul)" in said
    assert f"(fp16) holds {told}" in said
    assert "head" in bad_values(program, {"x": X})[0]


def test_a_mask_of_minus_infinity_over_a_whole_row_is_named(tmp_path):
    mask = np.zeros((2, 4), np.float32)
    mask[1] = -np.inf
    program = mil.read(saved(tmp_path, lambda mb, x: mb.softmax(x=mb.add(x=x, y=mask, name="masked"), axis=1), half=True))
    assert "masked" in bad_constants(program)[0]
    assert "-1e4" in bad_constants(program)[0]
    assert "masked" in bad_values(program, {"x": X})[0]
    made = mil.run(program, {"x": X})
    assert np.isnan(next(iter(made.values()))[1]).all()


def test_values_beyond_half_precision_are_named(tmp_path):
    build = lambda mb, x: mb.mul(x=mb.mul(x=x, y=30000.0, name="large"), y=1e-4)  # noqa: E731
    program = mil.read(saved(tmp_path, build, half=True))
    (said,) = bad_values(program, {"x": X})
    assert "large" in said
    assert "beyond float16" in said
    assert bad_values(program, {"x": X / 10}) == []
    assert bad_constants(program) == []
    single = mil.read(saved(tmp_path, build, half=False))
    assert bad_values(single, {"x": X}) == []


def test_bounds_may_be_infinite(tmp_path):
    program = mil.read(saved(tmp_path, lambda mb, x: mb.clip(x=x, alpha=0.0, beta=np.float32(np.inf))))
    assert bad_constants(program) == []
    assert bad_values(program, {"x": X}) == []


def test_torch_is_left_as_it_was(tmp_path):
    before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    output(saved(tmp_path, lambda mb, x: mb.relu(x=x)), X)
    assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
