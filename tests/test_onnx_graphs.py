"""Parts of exported graphs: they compute what the package computes with numpy and float64."""

import numpy as np
import onnx.parser
import onnxruntime
import pytest
import torch
from conftest import tiny_autoencoder
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sklearn_msf.data.images import ImageFormat
from sklearn_msf.exporting import conversion
from sklearn_msf.exporting.conversion import looped, to_onnx
from sklearn_msf.exporting.graphs import EXPORTED_UNCERTAINTIES
from sklearn_msf.exporting.image_conversion import from_field, native_dtype, to_field
from sklearn_msf.flow.label_codes import CodeReader, EncodedLabelCodes, make_label_codes
from sklearn_msf.latent.autoencoder import ImageAutoencoder
from sklearn_msf.model.classification import Prediction
from sklearn_msf.model.uncertainty import UNCERTAINTIES

RANGES = {
    "bool": (0, 1),
    "uint8": (0, 255),
    "uint16": (3, 65_535),
    "uint64": (0, 2**64 - 1),
    "int16": (-1024, 3071),
    "float16": (-2, 7),
    "float32": (0, 1),
    # Numbers that float32 would round.
    "float64": (1_234_567.1, 1_234_568.3),
}


def image_format(dtype, shape=(3, 2), *, flat=False, clip=8.0):
    return ImageFormat(shape, flat, np.dtype(dtype), *map(float, RANGES[dtype]), clip)


FORMATS = [
    *[image_format(dtype) for dtype in ("bool", "uint16", "uint64", "float16", "float64")],
    image_format("uint8", (3, 2, 3)),
    image_format("float32", (3, 2, 3), flat=True),
    image_format("int16", clip=1.0),
]


class Together(nn.Module):
    """Several functions of one tensor each, because every export takes a second."""

    def __init__(self, functions):
        super().__init__()
        self._functions = functions

    # The tracer of torch 2.9 has no variable arguments.
    def forward(self, q, r, s, t, u, v, a=None, b=None, c=None, d=None, e=None, f=None, g=None,
                h=None, i=None, j=None):  # fmt: skip
        inputs = (q, r, s, t, u, v, a, b, c, d, e, f, g, h, i, j)
        return tuple(f(x) for f, x in zip(self._functions, inputs, strict=False))


def run_all(functions, arrays):
    """Results of functions of one tensor each, in onnxruntime."""
    inputs, outputs = ([f"{way}{i}" for i in range(len(arrays))] for way in ("in", "out"))
    examples = [torch.from_numpy(array) for array in arrays]
    model = to_onnx(Together(functions), examples, inputs, outputs)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, dict(zip(inputs, arrays, strict=True)))


def images_of(image_format, n=4):
    shape = (n, *image_format.empty(1).shape[1:])
    values = np.random.default_rng(0).random(shape) * (image_format.high - image_format.low)
    if image_format.dtype.kind in "if":
        # Far beyond the training images, where values are clipped.
        return (6 * values + image_format.low).astype(image_format.dtype)
    return np.minimum(values + image_format.low, np.nextafter(image_format.high, 0)).astype(
        image_format.dtype
    )


def test_images_of_every_kind_are_converted_as_in_the_package_in_both_directions():
    arrays = [images_of(image_format) for image_format in FORMATS]
    generator = torch.Generator().manual_seed(0)
    x = [1.2 * torch.randn(4, f.n_channels, *f.size, generator=generator) for f in FORMATS]
    functions = [
        *[lambda X, f=image_format: to_field(X, f) for image_format in FORMATS],
        *[lambda x, f=image_format: from_field(x, f) for image_format in FORMATS],
    ]
    results = run_all(functions, [*arrays, *[part.numpy() for part in x]])
    scaled, generated = results[: len(FORMATS)], results[len(FORMATS) :]
    for i, image_format in enumerate(FORMATS):
        images = image_format.to_numpy_images(arrays[i].reshape(len(arrays[i]), -1))
        wanted = ImageFormat.normalise(torch.from_numpy(images)).numpy()
        np.testing.assert_allclose(scaled[i], wanted, atol=1e-6)
        wanted = image_format.from_tensor(x[i])
        assert generated[i].dtype == wanted.dtype
        # The largest float64 below 2**64 is 2**64 - 2048.
        allowed = {"uint64": 2048, "float64": 1e-9}.get(image_format.dtype.name, 0)
        np.testing.assert_allclose(generated[i].astype(float), wanted.astype(float), atol=allowed)


def test_a_dtype_that_onnx_lacks_is_named():
    with pytest.raises(ValueError, match="which ONNX lacks: fit on float32"):
        native_dtype(ImageFormat((2, 2), False, np.dtype(np.longdouble), 0.0, 1.0))


def test_foreign_byte_order_is_the_machine_s_own():
    assert native_dtype(ImageFormat((2, 2), False, np.dtype(">u2"), 0.0, 1.0)).isnative


CODES = {
    **{f"rgb {k}": make_label_codes("rgb", k, 4.0) for k in (3, 4)},
    "simplex": make_label_codes("simplex", 3, 4.0),
    "grayscale": make_label_codes("grayscale", 3, 4.0),
    "encoded": EncodedLabelCodes(torch.randn(3, 4, 2, 3, generator=torch.Generator())),
    "encoded, too alike": EncodedLabelCodes(torch.arange(3.0).view(3, 1, 1, 1).expand(3, 2, 2, 3)),
}


def test_masks_are_read_as_in_the_package_whatever_the_codes():
    generator = torch.Generator().manual_seed(0)
    masks = [
        torch.randn(5, codes.n_channels, 2, 3, generator=generator).double()
        for codes in CODES.values()
    ]
    readers = [CodeReader(codes) for codes in CODES.values()]

    def read(reader):
        return lambda masks: torch.stack([reader.probabilities(masks), reader.distances(masks)])

    results = run_all([read(reader) for reader in readers], [part.numpy() for part in masks])
    for found, part, codes in zip(results, masks, CODES.values(), strict=True):
        np.testing.assert_allclose(found[0], codes.probabilities(part), atol=1e-7)
        np.testing.assert_allclose(found[1], codes.distances(part), atol=1e-7)


@pytest.mark.parametrize("kind", EXPORTED_UNCERTAINTIES)
@given(seed=st.integers(0, 2**32 - 1), sharpness=st.floats(0.1, 500))
def test_uncertainties_are_those_of_the_package(kind, seed, sharpness):
    rng = np.random.default_rng(seed)
    logits = sharpness * rng.standard_normal((6, 3, 4))
    draws = np.exp(logits - logits.max(axis=2, keepdims=True))
    draws /= draws.sum(axis=2, keepdims=True)
    p, distances = draws.mean(axis=1), rng.random((6, 4))
    wanted = UNCERTAINTIES[kind](Prediction(p, distances, draws))
    tensors = (torch.from_numpy(part) for part in (p, distances, draws.transpose(1, 0, 2)))
    found = EXPORTED_UNCERTAINTIES[kind](*tensors)
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


def test_a_loop_repeats_its_step_with_the_numbers_of_each():
    start, step, end = (
        onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18]> {text}')
        for text in (
            "start (float[n, 2] x0) => (float[n, 2] first_x, float[n, 2] slope)"
            " <float[1] one = {1.0}> { first_x = Add(x0, x0)  slope = Add(x0, one) }",
            "step (float span, float[n, 2] slope, float[n, 2] x)"
            " => (float[n, 2] next_x)"
            " { way = Mul(span, slope)  next_x = Add(x, way) }",
            "end (float[n, 2] last_x) => (float[n, 2] y) { y = Neg(last_x) }",
        )
    )
    model = looped(start, step, end, {"span": [0.5, 0.25, 2.25]}, ["x"])
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    values = np.random.default_rng(0).random((5, 2), dtype=np.float32)
    (y,) = session.run(None, {"x0": values})
    # From 2 x, along the slope x + 1 from t = 0 to 3.
    np.testing.assert_allclose(y, -(2 * values + 3 * (values + 1)), rtol=1e-6)


def test_an_autoencoder_in_one_pass_computes_the_same_and_leaves_the_other_alone(monkeypatch):
    monkeypatch.setattr("sklearn_msf.latent.autoencoder._PIXELS_A_PASS", 8 * 16 * 16)
    autoencoder = ImageAutoencoder(tiny_autoencoder())
    images = torch.rand(19, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    copied = autoencoder.in_one_pass()
    encoded = []
    for module in (autoencoder.module, copied.module):
        encode = module.encode
        monkeypatch.setattr(
            module, "encode", lambda x, encode=encode: encoded.append(len(x)) or encode(x)
        )
    latents = copied.encode(images).mean
    assert encoded == [19]
    torch.testing.assert_close(latents, autoencoder.encode(images).mean)
    assert encoded == [19, 8, 8, 8]
    torch.testing.assert_close(copied.decode(latents), autoencoder.decode(latents))
    assert copied.module is not autoencoder.module


def test_one_model_is_exported_at_a_time(monkeypatch):
    # Two exporters at once would put back settings of the process that are each other's.
    seen = []

    def export(*_, **__):
        seen.append(conversion._EXPORTING.locked())
        raise InterruptedError

    monkeypatch.setattr(torch.export, "export", export)
    for _ in range(2):
        with pytest.raises(InterruptedError):
            to_onnx(nn.Identity(), [torch.zeros(3, 2)], ["x"], ["y"])
    assert seen == [True, True]
    assert not conversion._EXPORTING.locked()
