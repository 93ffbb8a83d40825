"""The range that fit learns stands outliers, and later images must be on its scale."""

import pickle
import warnings

import numpy as np
import pytest
from conftest import tiny_classifier, tiny_latent_classifier
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.datasets import load_digits

from sklearn_msf import MedSymmFlowClassifier
from sklearn_msf.data.images import ImageFormat, flatten_images, learn_format
from sklearn_msf.data.ranges import learn_range

RANDOM = np.random.default_rng(0).random((40, 8, 8))
DIGITS = load_digits(n_class=3, return_X_y=True)[0].reshape(-1, 8, 8)
LABELS = load_digits(n_class=3, return_X_y=True)[1]
CT = (RANDOM * 2000 - 1000).astype(np.int16)  # in [-999, 999]
Y = np.arange(40) % 2


def learned(X):
    """Format of X; learning it may warn."""
    rows, shape, _ = flatten_images(X)
    dtype, rows = rows.dtype, rows.astype(np.int8) if rows.dtype == bool else rows
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return learn_format(rows, shape, flat=False, dtype=dtype)


def check(fmt, X):
    rows, *_ = flatten_images(X)
    fmt.check(rows.astype(np.int8) if rows.dtype == bool else rows, rows.dtype)


def put(X, value, where=(4, 3, 3)):
    changed = X.copy()
    changed[where] = value
    return changed


# Outliers in training images


@pytest.mark.parametrize(
    ("X", "values", "low", "high"),
    [
        (put(DIGITS.astype(np.int16), 32767), "1 of 34368 values .*: 32767", 0, 16),
        (put(DIGITS, 1e30), r"1 of 34368 values .*: 1e\+30", 0, 16),
        (put(DIGITS, -1e30), r"1 of 34368 values .*: -1e\+30", 0, 16),
        (put(DIGITS, [3e4, 2e4], ([1, 2], 3, 3)), "2 of 34368 .*: from 20000 to 30000", 0, 16),
        (put(DIGITS / 16, 255), "1 of 34368 values .*: 255", 0, 1),
        (put((RANDOM * 4095).astype(np.uint16), 65535), "1 of 2560 values .*: 65535", 0, 4093),
        (put(CT, 32767), "1 of 2560 values .*: 32767", -999, 999),
        # A fill value: 2 of 8 columns of 40 images of 8 rows are 640 pixels.
        (put(CT, -32768, np.s_[:, :, :2]), "640 of 2560 values .*: -32768", -999, 999),
        (put((RANDOM > 0.5).astype(np.int16), 32767), "1 of 2560 values .*: 32767", 0, 1),
    ],
)
def test_values_far_outside_are_left_out_of_the_range_and_named(X, values, low, high):
    rows, shape, _ = flatten_images(X)
    with pytest.warns(UserWarning, match=f"{values}, while the others are in .{low}, {high}."):
        fmt = learn_format(rows, shape, flat=False)
    assert (fmt.low, fmt.high) == (low, high)
    # Outliers count as the end of the range.
    images = fmt.to_numpy_images(rows)
    assert (images.min(), images.max()) == (-1, 1)


def test_outliers_on_both_sides_are_left_out():
    X = put(put(CT, -32768, np.s_[:, :, :2]), 32767, (5, 5, 5))
    assert (learned(X).low, learned(X).high) == (-999, 999)


def test_one_outlier_does_not_hide_another():
    X = put(put(DIGITS, 1e30), 9999, (5, 5, 5))
    assert (learned(X).low, learned(X).high) == (0, 16)


@pytest.mark.parametrize(
    "X",
    [
        DIGITS,
        put(DIGITS, 40),  # The gap, 24, is 1.5 times as wide as [0, 16].
        put(CT, -2000, np.s_[:, :, :2]),  # The usual fill value of CT hardly changes the contrast.
        np.where(RANDOM > 0.5, 255.0, 0.0),
        np.where(RANDOM > 0.5, 255, (RANDOM * 4).astype(int)),
        np.random.default_rng(0).exponential(1, (40, 28, 28)),
        np.random.default_rng(0).lognormal(0, 1, (40, 28, 28)),
        np.full((40, 8, 8), 7.0),
        put(np.full((40, 8, 8), 7.0), 1e30),
        put(DIGITS[:3], 1e30, (1, 1, 1)),  # 192 values are too few.
    ],
)
def test_the_range_of_other_images_goes_from_minimum_to_maximum(X):
    rows, shape, _ = flatten_images(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fmt = learn_format(rows, shape, flat=False)
    assert (fmt.low, fmt.high, fmt.clip) == (X.min(), X.max(), 8)


@settings(max_examples=30)
@given(
    arrays(np.float64, (16, 20), elements=st.floats(-1e3, 1e3)),
    st.sampled_from([np.float32, np.float64, np.int16, np.int64]),
)
def test_the_learned_range_is_inside_minimum_and_maximum(values, dtype):
    rows = values.astype(dtype)
    fmt = learned(rows.reshape(16, 4, 5))
    if (fmt.low, fmt.high) != (0, 1):
        assert rows.min() <= fmt.low <= fmt.high <= rows.max()
        assert {fmt.low, fmt.high} <= set(rows.ravel().tolist())


def test_one_hot_pixel_leaves_the_model_as_good_as_it_was_and_other_images_alone():
    X, y = DIGITS[:180].astype(np.int16), LABELS[:180]
    others, of_others = DIGITS[180:300].astype(np.int16), LABELS[180:300]
    settings = {"channels": 16, "max_epochs": 15, "classification_fraction": 0.5}
    accuracy = tiny_classifier(**settings).fit(X, y).score(others, of_others)
    with pytest.warns(UserWarning, match="1 of 11520 values far outside .*: 32767"):
        model = tiny_classifier(**settings).fit(put(X, 32767), y)
    assert accuracy > 0.6
    assert abs(model.score(others, of_others) - accuracy) <= 0.02
    assert model.sample(n_samples=2, n_steps=2).max() <= 16
    assert model.reconstruct(others[:2], n_steps=2).max() <= 16
    # One outlier in images to predict changes the probabilities of its image at most.
    expected = model.predict_proba(others)
    got = model.predict_proba(put(others, 32767))
    kept = np.arange(len(others)) != 4
    np.testing.assert_array_equal(got[kept], expected[kept])


def test_a_first_part_with_an_outlier_gives_its_range_to_the_next():
    model = tiny_classifier()
    with pytest.warns(UserWarning, match="far outside"):
        model.partial_fit(put(CT, 32767), Y, classes=[0, 1])
    model.partial_fit(put(CT, 32767), Y)
    assert model.model_.image_format.high == 999


def test_a_latent_model_stands_an_outlier():
    with pytest.warns(UserWarning, match="far outside"):
        model = tiny_latent_classifier(max_epochs=1).fit(put(CT, 32767), Y)
    assert model.model_.space.image_format.high == 999
    assert np.abs(model.sample(n_steps=1)).max() <= 999


def test_clipping_outliers_outlasts_pickles_and_files(tmp_path):
    with pytest.warns(UserWarning, match="far outside"):
        model = tiny_classifier(max_epochs=1).fit(put(CT, 32767), Y)
    model.save_pretrained(tmp_path)
    X = put(CT, 5000)
    expected = model.predict_proba(X)
    # 5000 is clipped to 999, the end of the range.
    np.testing.assert_array_equal(model.predict_proba(put(CT, 999)), expected)
    for opened in (
        pickle.loads(pickle.dumps(model)),
        MedSymmFlowClassifier.from_pretrained(tmp_path),
    ):
        np.testing.assert_array_equal(opened.predict_proba(X), expected)


@pytest.mark.parametrize("clip", [0, 2.0, None, "8", [1.0], float("nan")])
def test_another_limit_in_a_file_is_refused(clip):
    plain = learned(put(CT, 32767)).to_plain()
    assert plain["clip"] == 1
    with pytest.raises(ValueError, match="clip="):
        ImageFormat.from_plain({**plain, "clip": clip})
    assert "clip" not in learned(CT).to_plain()


# The scale of later images

TRAINED = {
    "uint16": (RANDOM * 4095).astype(np.uint16),
    "CT": (RANDOM * 4000 - 1000).astype(np.int16),
    "standardised": (RANDOM - 0.5) * 5,
    "unit": RANDOM,
    "bytes": (RANDOM * 255).astype(np.uint8),
    "float bytes": RANDOM * 255,
    "masks": RANDOM > 0.5,
    "digits": DIGITS,
}


@pytest.mark.parametrize(
    ("trained", "X", "message"),
    [
        ("uint16", RANDOM, r"float64 in \[.*, 0.99.*fitted on uint16 in \[0, 4093\]: .* flat"),
        ("uint16", RANDOM[:1], r"fitted on uint16 in \[0, 4093\]: .* nearly flat"),
        ("uint16", TRAINED["standardised"], r"\[-2.49.* fitted on uint16 in .* nearly flat"),
        ("uint16", RANDOM > 0.5, r"X is bool in \[0, 1\], .* uint16 in \[0, 4093\]"),
        ("CT", RANDOM, r"fitted on int16 in \[-999, 2998\]: .*nearly flat"),
        ("CT", TRAINED["standardised"], r"fitted on int16 in \[-999, 2998\]: .*nearly flat"),
        ("float bytes", RANDOM > 0.5, r"X is bool in \[0, 1\], .*float64 in .*nearly flat"),
        ("standardised", RANDOM * 255, r"254.887\], .* float64 in \[-2.49.*% of its values"),
        ("standardised", TRAINED["CT"], r"int16 in \[-999, 2998\], .*\[-2.49.*of its values"),
        ("digits", RANDOM * 255, r"254.887\], .* float64 in \[0, 16\], so that 7\d.*clipped"),
        ("unit", RANDOM * 255, r"254.887\], .* in \[0, 1\], so that .* example X / 255"),
        ("unit", TRAINED["uint16"], r"uint16 in \[0, 4093\], .* in \[0, 1\], .* were[.]$"),
        ("masks", RANDOM * 255, r"in \[0, 1\], so that .* example X / 255"),
        ("bytes", RANDOM > 0.5, r"X is bool in \[0, 1\], .* uint8 in \[0, 255\]"),
        ("bytes", (RANDOM > 0.5).astype(int), r"X is int64 in \[0, 1\], .*uint8 in \[0, 255\]"),
        ("bytes", RANDOM, r"float64 in .*, .*fitted on uint8 in \[0, 255\]"),
    ],
)
def test_another_scale_is_refused_with_both_ranges(trained, X, message):
    with pytest.raises(ValueError, match=message):
        check(learned(TRAINED[trained]), X)


@pytest.mark.parametrize(
    ("trained", "X", "message"),
    [
        ("float bytes", RANDOM, r"0.99.*\], .* in \[0.04.*, 254.887\]: .*nearly flat"),
        ("uint16", (RANDOM > 0.5).astype(int), r"int64 in \[0, 1\], .*\[0, 4093\]"),
        ("uint16", TRAINED["float bytes"], r"254.887\], .*uint16 in \[0, 4093\]"),
        ("digits", DIGITS / 16, r"float64 in \[0, 1\], .*float64 in \[0, 16\]"),
        ("bytes", (RANDOM > 0.5).astype(np.uint8), r"uint8 in \[0, 1\], .*uint8 is \[0, 255\]"),
        # 12-bit values of which the highest 8 bits were meant.
        ("bytes", TRAINED["bytes"] // 16, r"uint8 in \[0, 15\], .*uint8 in \[0, 255\]: .*flat"),
        # One of 8 columns, 12.5 % of the values, is more than hot pixels.
        ("CT", put(TRAINED["CT"], 30000, np.s_[:, :, :1]), r"12.5% of its values are clipped"),
    ],
)
def test_what_may_be_another_scale_is_warned_of_with_both_ranges(trained, X, message):
    with pytest.warns(UserWarning, match=message):
        check(learned(TRAINED[trained]), X)


@pytest.mark.parametrize(
    ("trained", "X"),
    [
        *((name, X) for name, X in TRAINED.items()),
        *((name, X[:1]) for name, X in TRAINED.items()),
        *((name, np.zeros_like(X[:1])) for name, X in TRAINED.items()),
        *((name, np.full_like(X[:1], X.max())) for name, X in TRAINED.items()),
        ("CT", (RANDOM[:1] * 10 - 1000).astype(np.int16)),  # a slice of air,
        ("CT", RANDOM[:1] * 10 - 1000),  # resampled,
        ("CT", put(TRAINED["CT"], 32767)),  # a hot pixel,
        ("CT", TRAINED["CT"].astype(float)),
        ("CT", TRAINED["CT"].astype(np.int64)),
        ("unit", 0.999 * RANDOM[:1] ** 4),
        ("unit", 3 * RANDOM - 1),
        ("masks", RANDOM),
        ("bytes", TRAINED["bytes"][:1] // 64),  # a dark image
        ("bytes", np.rint(TRAINED["float bytes"])),
        ("digits", DIGITS[:1] / 16),
    ],
)
def test_images_that_may_be_right_are_taken_in_silence(trained, X):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(learned(TRAINED[trained]), X)


@pytest.mark.parametrize(
    "X",
    [
        put(CT, 32767),
        put(CT, -32768, np.s_[:, :, :2]),
        put(put(CT, -32768, np.s_[:, :, :2]), 32767, (5, 5, 5)),
        put(put(CT, -32768, np.s_[:, :, :2]), -3024, np.s_[:, 0, 3:]),
    ],
)
def test_the_outliers_of_training_are_expected_later(X):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for part in (X, X[4:14], X[4:5]):
            check(learned(X), part)


@pytest.mark.parametrize(
    "outliers",
    [lambda X: put(X, 32767), lambda X: put(X, -32768, np.s_[:, :, :2])],
    ids=["hot pixel", "fill value"],
)
def test_many_values_beyond_the_learned_range_are_not_taken_for_outliers(outliers):
    model = learned(outliers(CT))
    darker = (CT - 1000).astype(np.int16)
    for X in (darker, outliers(darker)):
        with pytest.warns(UserWarning, match=r"and on outliers: [345]\d\.\d% of its values are cl"):
            check(model, X)


METHODS = {
    "predict": lambda c, X: c.predict(X),
    "fit_reject": lambda c, X: c.fit_reject(X, Y),
    "reconstruct": lambda c, X: c.reconstruct(X),
    "partial_fit": lambda c, X: c.partial_fit(X, Y),
}


@pytest.mark.parametrize("make", [tiny_classifier, tiny_latent_classifier])
def test_every_method_refuses_another_scale(make):
    model = make(max_epochs=1).fit(TRAINED["uint16"], Y)
    for call in METHODS.values():
        with pytest.raises(ValueError, match=r"float64 in .*uint16 in \[0, 4093\]"):
            call(model, RANDOM)
    with pytest.raises(ValueError, match=r"X is bool in .*uint16 in \[0, 4093\]"):
        model.predict(RANDOM > 0.5)


# uint8 without contrast


@pytest.mark.parametrize("highest", [1, 5])
def test_bytes_without_contrast_are_warned_of_at_fit(highest):
    X = np.rint(RANDOM * highest).astype(np.uint8)
    with pytest.warns(UserWarning, match=rf"X is uint8 in \[0, {highest}\].*nearly black"):
        tiny_classifier(max_epochs=1).fit(X, Y)


def test_masks_of_booleans_have_their_own_range():
    X = RANDOM > 0.5
    assert (learned(X).low, learned(X).high) == (0, 1)


def test_a_fit_on_images_that_use_hardly_anything_of_their_range_warns():
    rows = np.random.default_rng(0).random((20, 16)) / 255
    with pytest.warns(UserWarning, match=r"nearly flat on it. Scale X"):
        assert learn_range(rows) == (0.0, 1.0, 8.0)


def several_hot_pixels():
    X = (DIGITS / DIGITS.max() * 16).astype(np.int16)
    for image, value in enumerate(range(2000, 32001, 6000)):
        X[image, 0, 0] = value
    return X


@pytest.mark.parametrize(
    "X",
    [
        several_hot_pixels(),
        np.where(RANDOM > 0.25, 273 + 37 * RANDOM, 0),  # Kelvin on a background of 0.
        np.where(RANDOM > 0.9, 1000 * RANDOM, 0),  # Bright structure on black.
        np.where(RANDOM > 0.25, 31768 + 2500 * RANDOM, 0).astype(np.uint16),
    ],
    ids=["hot-pixels", "kelvin", "bright", "offset"],
)
def test_images_that_use_a_sliver_of_their_range_are_warned_of(X):
    with pytest.warns(UserWarning, match=r"nearly all of them are in .*little contrast"):
        assert learn_range(X.reshape(len(X), -1)) == (X.min(), X.max(), 8)


@pytest.mark.parametrize(
    "X",
    [
        (RANDOM * 4095 / 65535).astype(np.float32),  # 12 bits, taken for 16.
        (RANDOM * 16).astype(np.uint8),
        (100 + RANDOM * 20).astype(np.uint8),
    ],
    ids=["fractions", "dark-bytes", "gray-bytes"],
)
def test_images_that_use_a_sliver_of_the_range_of_their_dtype_are_warned_of(X):
    rows = X.reshape(len(X), -1)
    with pytest.warns(UserWarning, match=r"nearly all .* taken for the range .*Stretch X over"):
        fmt = learn_format(rows, (8, 8), flat=False)
    assert (fmt.low, fmt.high) == (0, 255 if X.dtype == np.uint8 else 1)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_few_bright_values_are_named_with_other_remedies(dtype):
    X = np.where(RANDOM > 0.995, 1.0, RANDOM * 0.08)
    X = np.rint(255 * X).astype(dtype) if dtype == "uint8" else X.astype(dtype)
    with pytest.warns(UserWarning, match=r"little contrast\. If the others .* a logarithm"):
        learn_format(X.reshape(40, -1), (8, 8), flat=False)


def test_masks_of_small_objects_are_taken_in_silence():
    X = np.where(RANDOM > 0.995, 255, 0).astype(np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learn_format(X.reshape(40, -1), (8, 8), flat=False)


@pytest.mark.parametrize("n_large", [10, 90])
def test_images_on_two_scales_are_warned_of_whichever_are_more(n_large):
    X = np.random.default_rng(0).random((100, 64))
    X[:n_large] *= 255
    with pytest.warns(UserWarning, match=rf"{100 - n_large} of 100 images of X are in \[0, 1\]"):
        learn_format(X, (8, 8), flat=True)


def test_blank_images_of_the_fill_value_are_those_of_training():
    X = np.random.default_rng(0).integers(-1000, 1500, (50, 32, 32)).astype(np.int16)
    X[:, :8] = -32768
    with pytest.warns(UserWarning, match="-32768, while the others"):
        fmt = learn_format(X.reshape(50, -1), (32, 32), flat=False)
    blank = np.full((3, 1024), -32768, np.int16)
    fmt.check(blank)
    half = blank.copy()
    half[:, ::3] = -1000
    fmt.check(half)


def test_fractions_after_integers_are_noticed_in_a_single_image():
    fmt = learn_format(np.arange(4096, dtype=np.uint16)[None].repeat(9, 0), (64, 64), flat=True)
    with pytest.raises(ValueError, match="nearly flat"):
        fmt.check(np.random.default_rng(0).random((1, 4096)))
    with pytest.warns(UserWarning, match="nearly flat"):
        fmt.check(np.random.default_rng(0).random((1, 4096)) * 255)
    fmt.check(np.zeros((20, 4096), dtype=np.uint16))


@pytest.mark.parametrize(
    "X", [DIGITS, np.full((3, 8, 8), 5 + 1e-9), put(np.full((5, 8, 8), 5.0), 6)]
)
def test_images_of_one_value_teach_no_range_for_others(X):
    constant = np.full((4, 8, 8), 5.0)
    check(learned(constant), constant)
    with pytest.raises(ValueError, match="other values than 5 .* In partial_fit the first call"):
        check(learned(constant), X)
