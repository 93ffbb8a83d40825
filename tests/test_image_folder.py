"""load_image_folder: which files it reads, in which order, and as which pixels.

DICOM is in test_dicom_folder, tables in test_image_table, damage and attacks in
test_hostile_image_files.
"""

import os
import runpy
import struct
import sys
import tracemalloc
import zlib
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from conftest import tiny_classifier
from hypothesis import given
from hypothesis import strategies as st
from imported_scripts import EXAMPLES
from PIL import Image, ImageOps, PngImagePlugin

from sklearn_msf import MedSymmFlowClassifier
from sklearn_msf.datasets import _collecting, _folder_contents, load_image_folder
from sklearn_msf.datasets._resizing import fit_to_size

GRAY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
RGB = np.stack([GRAY, GRAY[::-1], 255 - GRAY], axis=-1)
DEEP = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1365


def write(path, pixels=GRAY, **options):
    """Write an image to a file, and make its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def load_one(folder, **options):
    """Load a folder of one image without a label."""
    bunch = load_image_folder(folder, **options)
    assert len(bunch.data) == 1
    return bunch.data[0]


@pytest.fixture
def two_classes(tmp_path):
    """Two images of each of two classes; the files have their number as their value."""
    for i, name in enumerate(["ill/a10.png", "ill/a2.png", "well/b.png", "well/c.png"]):
        write(tmp_path / "images" / name, np.full((8, 8), i, np.uint8))
    return tmp_path / "images"


def test_each_folder_is_a_class(two_classes):
    bunch = load_image_folder(two_classes)
    assert bunch.filenames.tolist() == ["ill/a2.png", "ill/a10.png", "well/b.png", "well/c.png"]
    assert bunch.data[:, 0, 0].tolist() == [1, 0, 2, 3]
    assert bunch.data.shape == (4, 8, 8)
    assert bunch.data.dtype == np.uint8
    assert bunch.target.tolist() == ["ill", "ill", "well", "well"]
    assert bunch.target_names == ["ill", "well"]
    assert bunch.groups is None
    assert bunch.report.unreadable == {}


@pytest.mark.parametrize("reverse", [False, True])
def test_the_order_of_the_files_is_not_that_of_the_file_system(two_classes, monkeypatch, reverse):
    scandir = os.scandir

    class Scan(list):
        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

    def ordered(folder):
        with scandir(folder) as found:
            return Scan(sorted(found, key=lambda entry: entry.name, reverse=reverse))

    monkeypatch.setattr(_folder_contents.os, "scandir", ordered)
    names = load_image_folder(two_classes).filenames.tolist()
    assert names == ["ill/a2.png", "ill/a10.png", "well/b.png", "well/c.png"]


def test_a_folder_goes_straight_into_a_classifier_and_another_into_its_predictions(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(24):
        image = rng.integers(0, 100, (8, 8), dtype=np.uint8)
        image[:, :4] += np.uint8(150 * (i % 2))
        write(tmp_path / "train" / ["dark", "left"][i % 2] / f"{i // 6}-{i}.png", image)
        write(tmp_path / "new" / f"{i}.png", image)
        write(tmp_path / "left only" / "left" / f"{i}.png", image)
    bunch = load_image_folder(
        tmp_path / "train", groups=lambda file: file.split("/")[1].split("-")[0]
    )
    assert sorted(set(bunch.groups)) == ["0", "1", "2", "3"]
    clf = tiny_classifier(max_epochs=15, early_stopping=True)
    clf.fit(bunch.data, bunch.target, groups=bunch.groups)
    assert clf.classes_.tolist() == bunch.target_names

    new = load_image_folder(tmp_path / "new")
    assert new.target is None
    assert new.target_names == []
    truth = [["dark", "left"][int(name.split(".")[0]) % 2] for name in new.filenames]
    assert np.mean(clf.predict(new.data) == truth) > 0.8

    with pytest.warns(UserWarning, match="All images are of one class, 'left'"):
        other = load_image_folder(tmp_path / "left only")
    # Labels are names, so a folder that lacks a class still agrees with the classifier.
    assert np.mean(clf.predict(other.data) == other.target) == np.mean(np.array(truth) == "left")


# What files hold ----------------------------------------------------------------------------

PALETTE = Image.fromarray(GRAY % 3)
PALETTE.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
GRAY_PALETTE = Image.fromarray(GRAY % 3)
GRAY_PALETTE.putpalette([7, 7, 7, 90, 90, 90, 200, 200, 200])
ALPHA = np.where(GRAY < 100, 0, 255).astype(np.uint8)
OVER_BLACK = np.where(ALPHA == 255, GRAY, 0)
BITS = Image.fromarray(GRAY > 100)
LOOKED_UP = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)[GRAY % 3]
FLOATS = (GRAY / 7).astype(np.float32)
SIGNED = Image.fromarray(GRAY.astype(np.int32) - 1000)


@pytest.mark.parametrize(
    ("name", "image", "options", "expected", "bit_depth"),
    [
        ("gray.png", GRAY, {}, GRAY, 8),
        ("gray.tif", GRAY, {}, GRAY, 8),
        ("compressed.tif", GRAY, {"compression": "tiff_lzw"}, GRAY, 8),
        ("wrong name.jpg", GRAY, {"format": "PNG"}, GRAY, 8),
        ("no ending", GRAY, {"format": "TIFF"}, GRAY, 8),
        ("rgb.png", RGB, {}, RGB, 8),
        ("rgb.tif", RGB, {}, RGB, 8),
        ("gray.jpg", np.full((6, 8), 90, np.uint8), {}, np.full((6, 8), 90, np.uint8), 8),
        ("deep.png", DEEP, {}, DEEP, 16),
        ("deep.tif", DEEP, {}, DEEP, 16),
        ("white is 0.tif", DEEP, {"tiffinfo": {262: 0}}, 65535 - DEEP, 16),
        ("one bit.tif", BITS, {}, np.where(GRAY > 100, 255, 0).astype(np.uint8), 1),
        ("one bit.png", BITS, {}, np.where(GRAY > 100, 255, 0).astype(np.uint8), 1),
        ("palette.png", PALETTE, {}, LOOKED_UP, 2),
        ("palette.tif", PALETTE, {}, LOOKED_UP, 8),
        ("gray palette.png", GRAY_PALETTE, {}, np.array([7, 90, 200], np.uint8)[GRAY % 3], 2),
        ("alpha.png", np.dstack([GRAY, ALPHA]), {}, OVER_BLACK, 8),
        ("rgb alpha.png", np.dstack([RGB, ALPHA]), {}, np.where(ALPHA[..., None], RGB, 0), 8),
        ("key.png", GRAY, {"transparency": 35}, np.where(GRAY == 35, 0, GRAY), 8),
        ("floats.tif", FLOATS, {}, FLOATS, 32),
        ("integers.tif", SIGNED, {}, GRAY.astype(np.float32) - 1000, 32),
    ],
)
def test_a_file_becomes_the_pixels_it_shows(tmp_path, name, image, options, expected, bit_depth):
    write(tmp_path / name, image, **options)
    bunch = load_image_folder(tmp_path)
    assert bunch.data.dtype == np.asarray(expected).dtype
    np.testing.assert_array_equal(bunch.data[0], expected)
    assert bunch.report.bit_depths == {bit_depth: 1}
    assert bunch.report.sizes == {(6, 8): 1}


def test_half_transparent_pixels_are_half_as_bright(tmp_path):
    write(tmp_path / "a.png", np.full((2, 2, 2), [200, 128], np.uint8))
    assert load_one(tmp_path)[0, 0] == 100


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "deep.png", "deep.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_exif_data_say(tmp_path, name, orientation):
    pixels = DEEP if name.startswith("deep") else GRAY
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write(tmp_path / name, pixels, exif=exif)
    # Row 0 and column 0 of the file are these sides of the scene (EXIF 2.3, orientation tag).
    turned = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.T,
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].T,
        8: np.rot90(pixels),
    }[orientation]
    loaded = load_one(tmp_path)
    assert loaded.shape == turned.shape
    # JPEG changes values a little; Pillow reads the file that it wrote.
    exact = np.asarray(ImageOps.exif_transpose(Image.open(path))) if "jpg" in name else turned
    np.testing.assert_array_equal(loaded, exact)


@pytest.mark.parametrize("place", ["XMP", "raw profile"])
def test_a_png_may_name_its_orientation_in_text(tmp_path, place):
    info, exif = PngImagePlugin.PngInfo(), Image.Exif()
    exif[0x0112] = 6
    if place == "XMP":
        info.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta><rdf tiff:Orientation="6"/></x:xmpmeta>')
    else:
        data = exif.tobytes()
        text = f"\nexif\n{len(data):8}\n{data.hex()}\n"
        info.add_text("Raw profile type exif", text, zip=True)
    write(tmp_path / "a.png", pnginfo=info)
    np.testing.assert_array_equal(load_one(tmp_path), np.rot90(GRAY, -1))


def test_colours_of_16_bits_are_read_as_8_with_a_warning(tmp_path):
    # Pillow cannot write such a file: an uncompressed TIFF with three samples of 16 bits.
    path = write(tmp_path / "a.tif", np.zeros((4, 4), np.uint16))
    raw = np.arange(48, dtype="<u2").reshape(4, 4, 3) * 1000
    path.write_bytes(tiff_of_48_bits(raw))
    with pytest.warns(UserWarning, match=r"1 files each has 16 bits a channel.*'a.tif'"):
        bunch = load_image_folder(tmp_path)
    np.testing.assert_array_equal(bunch.data[0], raw >> 8)
    assert bunch.report.bit_depths == {16: 1}


def test_planes_of_16_bits_are_refused(tmp_path):
    path = write(tmp_path / "a.tif", np.zeros((4, 4), np.uint16))
    planes = np.arange(48, dtype="<u2").reshape(3, 4, 4)
    path.write_bytes(tiff_of_48_bits(planes, has_planes=True))
    with pytest.raises(ValueError, match="16 bits a channel and a plane for each"):
        load_image_folder(tmp_path)


@pytest.mark.parametrize("dtype", [">f4", ">i2", ">i4"])
def test_tiff_whose_highest_byte_comes_first_is_read_unless_pillow_misreads_it(tmp_path, dtype):
    pixels = np.arange(-8, 8).reshape(4, 4).astype(dtype)
    path = tmp_path / "a.tif"
    path.write_bytes(gray_tiff(pixels))
    np.testing.assert_array_equal(load_one(tmp_path), pixels)
    path.write_bytes(gray_tiff(pixels, is_compressed=True))
    with pytest.raises(ValueError, match="begin with their highest byte, which Pillow misreads"):
        load_image_folder(tmp_path)


def test_unsigned_tiff_of_16_bits_is_read_in_both_orders_compressed_or_not(tmp_path):
    for i, dtype in enumerate((">u2", "<u2")):
        pixels = (np.arange(16).reshape(4, 4) * 1000).astype(dtype)
        for is_compressed in (False, True):
            path = tmp_path / f"{i}{is_compressed}" / "a.tif"
            path.parent.mkdir()
            path.write_bytes(gray_tiff(pixels, is_compressed=is_compressed))
            np.testing.assert_array_equal(load_one(path.parent), pixels)


@pytest.mark.parametrize(
    ("tags", "expected", "message"),
    [
        ({262: 0}, lambda v: 255 - v, "0 is white and has a plane for each channel"),
        ({266: 2}, lambda v: np.packbits(np.unpackbits(v, bitorder="little")), "lowest bit"),
    ],
    ids=["0 is white", "lowest bit first"],
)
def test_planes_of_a_layout_that_pillow_cuts_off_are_refused(tmp_path, tags, expected, message):
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    path = tmp_path / "a.tif"
    path.write_bytes(gray_tiff(pixels, tags=tags))
    np.testing.assert_array_equal(load_one(tmp_path).ravel(), expected(pixels.ravel()))
    path.write_bytes(gray_tiff(pixels, tags={284: 2, **tags}))
    with pytest.raises(ValueError, match=message):
        load_image_folder(tmp_path)


def gray_tiff(pixels, *, tags=None, is_compressed=False):
    """A TIFF of one strip, in the order of bytes of its pixels."""
    big = pixels.dtype.byteorder == ">"
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    data = zlib.compress(pixels.tobytes()) if is_compressed else pixels.tobytes()
    height, width = pixels.shape
    given = {256: width, 257: height, 258: 8 * pixels.itemsize, 259: 8 if is_compressed else 1}
    given |= {262: 1, 266: 1, 273: 200, 277: 1, 278: height, 279: len(data), 284: 1, 339: kind}
    tags = {**given, **(tags or {})}
    order = ">" if big else "<"
    # Kind 4: numbers of 32 bits.
    entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, n) for tag, n in tags.items())
    head = (b"MM" if big else b"II") + struct.pack(order + "HIH", 42, 8, len(tags))
    return (head + entries + bytes(4)).ljust(200, b"\0") + data


def test_pages_of_different_bits_make_no_volume(tmp_path):
    deep, flat = (Image.fromarray(pixels) for pixels in (DEEP, GRAY))
    path = tmp_path / "images" / "a" / "x.tif"
    write(path, deep, save_all=True, append_images=[flat])
    with pytest.raises(
        ValueError, match=r"pages of different shapes or bits.*uint16.*uint8|uint8.*uint16"
    ):
        load_image_folder(tmp_path / "images", volumes=True)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_transparent_gray_is_laid_over_black(tmp_path, bits):
    # The highest value is transparent.
    levels = np.array([[0, 1], [2, 2**bits - 1]])
    scale = 1 if bits > 8 else 255 // (2**bits - 1)
    (tmp_path / "a.png").write_bytes(transparent_png(levels, bits, transparent=2**bits - 1))
    expected = np.where(levels == 2**bits - 1, 0, levels) * scale
    np.testing.assert_array_equal(load_one(tmp_path), expected)


@pytest.mark.parametrize("key", [0x01FF, 0xFF00])
def test_transparent_colours_of_16_bits_are_found_by_their_upper_half(tmp_path, key):
    levels = np.array([[key, 0x1234], [0x01FE ^ 0xFFFF, 0x8001]])[..., None].repeat(3, axis=2)
    (tmp_path / "a.png").write_bytes(transparent_png(levels, 16, transparent=key))
    with pytest.warns(UserWarning, match="of which Pillow reads 8"):
        found = load_one(tmp_path)
    expected = levels >> 8
    expected[0, 0] = 0
    np.testing.assert_array_equal(found, expected)


def transparent_png(levels, bits, transparent):
    """A PNG of gray values of 2 to 16 bits, or of colours, of which one is transparent."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    height, width = levels.shape[:2]
    n_channels = levels[0, 0].size
    rows = b""
    for row in levels.reshape(height, -1):
        number = sum(int(v) << bits * (len(row) - 1 - i) for i, v in enumerate(row))
        n_bytes = -(-len(row) * bits // 8)
        rows += b"\0" + (number << (8 * n_bytes - len(row) * bits)).to_bytes(n_bytes, "big")
    color_type = 2 if n_channels == 3 else 0
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    chunks = {
        b"IHDR": header,
        b"tRNS": struct.pack(">H", transparent) * n_channels,
        b"IDAT": zlib.compress(rows),
    }
    parts = [chunk(name, data) for name, data in {**chunks, b"IEND": b""}.items()]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_bars_have_one_value_in_all_slices_of_a_volume():
    slices = np.stack([np.full((4, 8, 1), value, np.float32) for value in (-1000, 50)])
    padded = fit_to_size(slices, (8, 8), "pad")
    assert (padded[:, :2] == -1000).all()
    assert (padded[1, 2:6] == 50).all()


@pytest.mark.parametrize(("name", "value"), [("groups", np.arange(4)), ("window", np.ones(2))])
def test_arrays_where_none_is_taken_are_named(two_classes, name, value):
    with pytest.raises(ValueError, match=f"{name} must be None, '"):
        load_image_folder(two_classes, **{name: value})


def tiff_of_48_bits(pixels, *, has_planes=False):
    """An uncompressed RGB TIFF with 16 bits a channel."""
    height, width = pixels.shape[1:] if has_planes else pixels.shape[:2]
    tags = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, 3, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 200),
        (277, 3, 1, 3),
        (278, 3, 1, height),
        (279, 4, 1, pixels.nbytes),
    ]
    if has_planes:
        n = pixels[0].nbytes
        parts = np.array([400, 400 + n, 400 + 2 * n, n, n, n], "<u4").tobytes()
        tags[5], tags[8] = (273, 4, 3, 376), (279, 4, 3, 388)
        tags.append((284, 3, 1, 2))
    head = b"II*\0" + (14).to_bytes(4, "little") + b"\x10\0\x10\0\x10\0"
    entries = b"".join(
        tag.to_bytes(2, "little")
        + kind.to_bytes(2, "little")
        + count.to_bytes(4, "little")
        + value.to_bytes(4, "little")
        for tag, kind, count, value in tags
    )
    directory = len(tags).to_bytes(2, "little") + entries + bytes(4)
    if has_planes:
        return (head + directory).ljust(376, b"\0") + parts + pixels.tobytes()
    return (head + directory).ljust(200, b"\0") + pixels.tobytes()


def test_gray_images_beside_coloured_ones_become_rgb(tmp_path):
    write(tmp_path / "a.png", GRAY)
    write(tmp_path / "b.png", RGB)
    bunch = load_image_folder(tmp_path)
    np.testing.assert_array_equal(bunch.data, [np.dstack([GRAY] * 3), RGB])
    assert bunch.report.modes == {"L": 1, "RGB": 1}


def test_colour_becomes_gray_as_pillow_converts_it_and_gray_becomes_rgb(tmp_path):
    write(tmp_path / "a.png", RGB)
    expected = np.asarray(Image.fromarray(RGB).convert("L"))
    np.testing.assert_allclose(load_one(tmp_path, color="gray"), expected, atol=1)
    write(tmp_path / "a.png", GRAY)
    np.testing.assert_array_equal(load_one(tmp_path, color="rgb"), np.dstack([GRAY] * 3))


# Sizes --------------------------------------------------------------------------------------


def test_several_sizes_are_listed_and_refused_unless_a_size_is_given(tmp_path):
    write(tmp_path / "a" / "1.png", np.zeros((6, 8), np.uint8))
    write(tmp_path / "b" / "2.png", np.zeros((6, 8), np.uint8))
    write(tmp_path / "b" / "3.png", np.zeros((5, 9), np.uint8))
    with pytest.raises(
        ValueError,
        match=r"2 sizes: \(6, 8\) \(2, such as 'a/1.png'\), \(5, 9\) \(1, such as 'b/3.png'\)",
    ):
        load_image_folder(tmp_path)
    bunch = load_image_folder(tmp_path, size=4)
    assert bunch.data.shape == (3, 4, 4)
    assert bunch.report.sizes == {(6, 8): 2, (5, 9): 1}


def test_crop_keeps_the_middle_and_pad_keeps_everything(tmp_path):
    thirds = np.repeat(np.array([[50, 100, 200]], np.uint8), 8, axis=1).repeat(8, axis=0)
    write(tmp_path / "a.png", thirds)
    np.testing.assert_array_equal(load_one(tmp_path, size=8), np.full((8, 8), 100))
    padded = load_one(tmp_path, size=24, fit="pad")
    np.testing.assert_array_equal(padded[8:16], thirds)
    assert not padded[:8].any()
    assert not padded[16:].any()


def test_tall_images_are_cut_above_and_below_or_put_between_bars_at_the_sides():
    thirds = np.repeat(np.array([50, 100, 200], np.uint8), 8)[None, :, None, None]
    tall = np.repeat(thirds, 8, axis=2)
    assert (fit_to_size(tall, (8, 8), "crop") == 100).all()
    padded = fit_to_size(tall, (24, 24), "pad")[0]
    np.testing.assert_array_equal(padded[:, 8:16], tall[0])
    assert not padded[:, :8].any()
    assert not padded[:, 16:].any()


@pytest.mark.parametrize("pixels", [GRAY, DEEP, FLOATS], ids=["8", "16", "float"])
def test_resizing_is_antialiased(tmp_path, pixels):
    high = pixels.max()
    board = np.where(np.indices((64, 64)).sum(axis=0) % 2, high, 0).astype(pixels.dtype)
    write(tmp_path / "a.tif", board)
    small = load_one(tmp_path, size=8)
    assert small.dtype == pixels.dtype
    # Without the average over 8 x 8 pixels the board would be all 0 or all high.
    np.testing.assert_allclose(small, high / 2, rtol=0.02)


@given(
    st.tuples(*[st.integers(1, 12)] * 4),
    st.sampled_from(["crop", "pad"]),
    st.sampled_from([np.uint8, np.uint16, np.float32]),
    st.integers(0, 99),
)
def test_a_resized_image_has_the_size_and_no_new_extremes(sizes, fit, dtype, seed):
    frames = (np.random.default_rng(seed).random((2, *sizes[:2], 3)) * 255).astype(dtype)
    made = fit_to_size(frames, sizes[2:], fit)
    assert made.shape == (2, *sizes[2:], 3)
    assert made.dtype == dtype
    assert made.max() <= frames.max()
    assert made.min() >= (0 if fit == "pad" else frames.min())
    if sizes[:2] == sizes[2:]:
        np.testing.assert_array_equal(made, frames)


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 40), st.integers(1, 40))
def test_an_image_of_one_colour_keeps_it(height, width, new_height, new_width):
    frames = np.full((1, height, width, 1), 173, np.uint8)
    assert (fit_to_size(frames, (new_height, new_width), "crop") == 173).all()


def test_different_bit_depths_are_refused_by_name(tmp_path):
    write(tmp_path / "a.png", GRAY)
    write(tmp_path / "b.png", DEEP)
    with pytest.raises(
        ValueError, match=r"several bit depths or units: uint8 \(1, such as 'a.png'\), uint16 .*"
    ):
        load_image_folder(tmp_path)


# Volumes ------------------------------------------------------------------------------------


def test_pages_of_a_file_are_slices(tmp_path):
    pages = [Image.fromarray(np.full((4, 5), i, np.uint8)) for i in range(3)]
    write(tmp_path / "a.tif", pages[0], save_all=True, append_images=pages[1:])
    bunch = load_image_folder(tmp_path, volumes=True)
    assert bunch.data.shape == (1, 3, 4, 5)
    assert bunch.data[0, :, 0, 0].tolist() == [0, 1, 2]
    assert bunch.report.sizes == {(3, 4, 5): 1}
    with pytest.raises(ValueError, match=r"'a.tif': has 3 frames: pass volumes=True"):
        load_image_folder(tmp_path)


def test_files_in_a_folder_of_a_class_folder_are_slices_in_the_order_of_their_numbers(tmp_path):
    for volume in ("ill/v1", "ill/v2", "well/v3"):
        for i in range(11):
            write(tmp_path / volume / f"slice{i}.png", np.full((4, 4), i, np.uint8))
    bunch = load_image_folder(tmp_path, volumes=True)
    assert bunch.filenames.tolist() == ["ill/v1", "ill/v2", "well/v3"]
    assert bunch.target.tolist() == ["ill", "ill", "well"]
    assert bunch.data[0, :, 0, 0].tolist() == list(range(11))


def test_volumes_are_resized_in_depth_too_or_must_have_one_depth(tmp_path):
    for name, depth in (("a", 4), ("b", 8)):
        for i in range(depth):
            write(
                tmp_path / name / "v" / f"{i}.png",
                np.full((6, 6), 200 * (i >= depth // 2), np.uint8),
            )
    bunch = load_image_folder(tmp_path, volumes=True, size=(2, 3, 3))
    assert bunch.data.shape == (2, 2, 3, 3)
    assert (bunch.data[:, 0] < 30).all()
    assert (bunch.data[:, 1] > 170).all()
    with pytest.raises(ValueError, match=r"2 depths: 4 \(1, such as 'a/v'\), 8 .*depth, height"):
        load_image_folder(tmp_path, volumes=True, size=(3, 3))
    assert load_image_folder(tmp_path, volumes=True, size=5).data.shape == (2, 5, 5, 5)


def test_a_volume_with_an_unreadable_slice_is_left_out_as_a_whole(tmp_path):
    for name in ("a/good/1.png", "a/good/2.png", "b/bad/1.png", "b/good/1.png", "b/good/2.png"):
        write(tmp_path / name)
    (tmp_path / "b" / "bad" / "2.png").write_bytes(b"nothing")
    with pytest.warns(UserWarning, match="1 of 3 files are left out"):
        bunch = load_image_folder(tmp_path, volumes=True)
    assert bunch.filenames.tolist() == ["a/good", "b/good"]
    assert "slice 'b/bad/2.png': is neither PNG" in bunch.report.unreadable["b/bad"]


def test_single_slices_are_no_volumes(tmp_path):
    # Folders of slices to predict, which look like folders of classes.
    for name in ("series_1/1.png", "series_1/2.png", "series_2/1.png"):
        write(tmp_path / name)
    with pytest.raises(ValueError, match=r"each of the 3 samples .* single slice .*'volume'"):
        load_image_folder(tmp_path, volumes=True, size=8)
    write(tmp_path / "series_1" / "v" / "1.png")
    write(tmp_path / "series_1" / "v" / "2.png")
    with pytest.warns(UserWarning, match="3 of 4 volumes are single slices: 'series_1/1.png'"):
        load_image_folder(tmp_path, volumes=True, size=8)


def test_a_volume_of_one_slice_is_warned_of_whoever_named_it(tmp_path):
    for name in ("ill/v/1.png", "ill/v/2.png", "well/scout/1.png"):
        write(tmp_path / name)
    single = "1 of 2 volumes are single slices: 'well/scout'"
    with pytest.warns(UserWarning, match=single):
        load_image_folder(tmp_path, volumes=True, size=8)
    table = pd.DataFrame(
        {
            "file": ["ill/v/1.png", "ill/v/2.png", "well/scout/1.png"],
            "label": ["ill", "ill", "well"],
            "volume": ["v", "v", "mistyped"],
        }
    )
    with pytest.warns(UserWarning, match="1 of 2 volumes are single slices: 'mistyped'"):
        load_image_folder(tmp_path, labels=table, volumes=True, size=8)


def test_slices_of_several_sizes_are_no_volume(tmp_path):
    write(tmp_path / "a" / "v" / "1.png", np.zeros((4, 4), np.uint8))
    write(tmp_path / "a" / "v" / "2.png", np.zeros((5, 4), np.uint8))
    with pytest.raises(ValueError, match="'a/v': its slices have different size"):
        load_image_folder(tmp_path, volumes=True)


# Folders that are not as they should be -------------------------------------------------------


def test_hidden_files_are_ignored_and_said_to_be(two_classes):
    for name in (".DS_Store", "ill/Thumbs.db", "ill/._a.png", "well/desktop.ini"):
        (two_classes / name).write_bytes(b"\0")
    write(two_classes / "__MACOSX" / "ill" / "a.png")
    write(two_classes / "ill" / ".thumbnails" / "a.png")
    (two_classes / "README.txt").write_text("not an image")
    bunch = load_image_folder(two_classes)
    assert len(bunch.data) == 4
    assert sorted(bunch.report.ignored) == [
        ".DS_Store",
        "README.txt",
        "__MACOSX",
        "ill/._a.png",
        "ill/.thumbnails",
        "ill/Thumbs.db",
        "well/desktop.ini",
    ]


def test_an_empty_folder_holds_no_image(tmp_path):
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    with pytest.raises(
        ValueError, match="holds no image. What is read: a folder for each class.*DICOM"
    ):
        load_image_folder(tmp_path)


def test_a_path_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere' is no folder"):
        load_image_folder(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match="a.png' is no folder"):
        load_image_folder(write(tmp_path / "a.png"))


def test_images_beside_class_folders_are_refused(two_classes):
    write(two_classes / "stray.png")
    with pytest.raises(ValueError, match=r"holds images \('stray.png'\) beside folders"):
        load_image_folder(two_classes)


def test_folders_inside_class_folders_are_refused(two_classes):
    write(two_classes / "ill" / "more" / "a.png")
    with pytest.raises(ValueError, match=r"folders too far inside \('ill/more'\).*volumes=True"):
        load_image_folder(two_classes)
    write(two_classes / "ill" / "more" / "yet more" / "a.png")
    with pytest.raises(ValueError, match=r"too far inside \('ill/more/yet more'\)"):
        load_image_folder(two_classes, volumes=True)


@pytest.mark.parametrize("other", ["Ill", "ill ", "ILL"])
def test_class_folders_that_differ_only_in_case_or_spaces_are_refused(two_classes, other):
    write(two_classes / other / "a.png")
    if len(list(two_classes.iterdir())) < 3:
        pytest.skip("the file system does not tell such names apart")
    with pytest.raises(ValueError, match="same name but for case"):
        load_image_folder(two_classes)


def test_a_class_folder_without_files_is_refused(two_classes):
    (two_classes / "neither").mkdir()
    with pytest.raises(ValueError, match=r"class folder '.*neither' is empty"):
        load_image_folder(two_classes)


def test_a_class_whose_images_are_all_unreadable_is_named(two_classes):
    for path in (two_classes / "well").iterdir():
        path.write_bytes(b"nothing")
    with (
        pytest.warns(UserWarning, match="2 of 4 files are left out: 'well/b.png': is neither"),
        pytest.warns(UserWarning, match="No image of the classes 'well' could be read"),
    ):
        bunch = load_image_folder(two_classes)
    assert bunch.target_names == ["ill"]


@pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
def test_a_class_whose_images_are_all_links_is_named(two_classes):
    for number, path in enumerate(list((two_classes / "well").iterdir())):
        path.rename(two_classes.parent / f"{number}.png")
        path.symlink_to(two_classes.parent / f"{number}.png")
    with (
        pytest.warns(UserWarning, match="are left out"),
        pytest.warns(UserWarning, match="No image of the classes 'well' could be read"),
    ):
        bunch = load_image_folder(two_classes)
    assert bunch.target_names == ["ill"]


@pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
def test_a_class_of_a_table_whose_images_are_all_links_is_named(two_classes):
    for number, path in enumerate(list((two_classes / "well").iterdir())):
        path.rename(two_classes.parent / f"{number}.png")
        path.symlink_to(two_classes.parent / f"{number}.png")
    files = sorted(str(p.relative_to(two_classes)) for p in two_classes.rglob("*.png"))
    table = pd.DataFrame({"file": files, "label": [Path(file).parts[0] for file in files]})
    with (
        pytest.warns(UserWarning, match="are left out"),
        pytest.warns(UserWarning, match="No image of the classes 'well' could be read"),
    ):
        load_image_folder(two_classes, labels=table)


def exif_behind_the_pixels(path):
    """A PNG whose orientation stands behind its pixels, as the format allows."""
    exif = Image.Exif()
    exif[0x0112] = 6
    content = write(path, exif=exif).read_bytes()
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4], "big")
    last = content.index(b"IEND") - 4
    path.write_bytes(content[:start] + content[end:last] + content[start:end] + content[last:])


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        (
            "nan.tif",
            lambda path: write(path, np.where(FLOATS > 3, np.nan, FLOATS)),
            "has values that are NaN or infinite",
        ),
        (
            "large.tif",
            lambda path: write(path, np.full((6, 8), 2**24 + 1, np.int32)),
            "has integers beyond 2^24, which float32 cannot hold exactly",
        ),
        (
            "signed.tif",
            lambda path: write(path, tiffinfo={339: 2}),
            "has signed integers of 8 bits, which Pillow reads as unsigned",
        ),
        (
            "white is 0.tif",
            lambda path: write(path, FLOATS, tiffinfo={262: 0}),
            "says that 0 is white, and has numbers of 32 bits",
        ),
        ("lab.tif", lambda path: write(path, Image.new("LAB", (8, 6))), "Pillow's mode 'LAB'"),
        ("empty.png", lambda path: path.write_bytes(b""), "is neither PNG, JPEG, TIFF nor DICOM"),
        ("png.tif", lambda path: path.write_bytes(b"II*\0nonsense"), "is damaged, or has bits"),
        (
            "turned.png",
            exif_behind_the_pixels,
            "has pixels of shape (1, 8, 6, 1) and uint8, but its header says (1, 6, 8, 1)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)
def test_a_file_that_cannot_be_read_as_it_is_has_its_reason(tmp_path, name, make, reason):
    make(tmp_path / name)
    with pytest.raises(ValueError, match="None of 1 files") as caught:
        load_image_folder(tmp_path)
    assert reason in str(caught.value)


def test_an_error_is_raised_only_if_no_file_can_be_read(two_classes):
    for path in two_classes.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:45])
    with pytest.raises(ValueError, match=r"None of 4 files .* read: 'ill/a2.png': OSError.*3 more"):
        load_image_folder(two_classes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size must be None, a number of pixels or .height, width., got .0, 0."),
        ({"size": (4, 4, 4)}, "size must be"),
        ({"size": True}, "size must be"),
        ({"size": 2.5}, "size must be"),
        ({"size": (2, 4.0)}, "size must be"),
        ({"size": 2**15}, "possible: pass a smaller size"),
        ({"color": "grey"}, r"color must be one of .*'gray'.*, got 'grey'"),
        ({"fit": "stretch"}, "fit must be one of .*, got 'stretch'"),
        ({"groups": "patient"}, "groups must be None, 'PatientID' or a function"),
        ({"groups": "PatientID"}, "4 files have no PatientID: 'ill/a2.png'"),
        ({"groups": lambda file: None}, "groups contains NaN or None in 4 of 4"),
        ({"window": (40, 0)}, "window must be None, 'file' or .center, width."),
        ({"window": "lung"}, "window must be None"),
        ({"window": (float("nan"), 3)}, "window must be None"),
        ({"window": ("1", "2")}, "window must be None"),
        ({"labels": ["ill", "well"]}, "labels must be None, the path of a CSV file or a data fra"),
    ],
)
def test_bad_parameters_are_named(two_classes, options, message):
    with pytest.raises(ValueError, match=message):
        load_image_folder(two_classes, **options)


# Memory and files -----------------------------------------------------------------------------


def test_images_go_to_a_file_that_is_mapped_into_memory(two_classes, tmp_path):
    for name, end in (("a.png", 10), ("z.png", 45)):
        # One is damaged in its header, the other in its pixels.
        path = write(two_classes / "well" / name, np.zeros((8, 8), np.uint8))
        path.write_bytes(path.read_bytes()[:end])
    file = tmp_path / "images.npy"
    with pytest.warns(UserWarning, match="left out"):
        bunch = load_image_folder(two_classes, mmap_file=file)
    assert isinstance(bunch.data, np.memmap)
    assert not bunch.data.flags.writeable
    assert bunch.data[:, 0, 0].tolist() == [1, 0, 2, 3]
    # The header has the number of the images that were read.
    assert np.load(file).shape == (4, 8, 8)
    assert sorted(os.listdir(tmp_path)) == ["images", "images.npy"]


def test_a_file_that_exists_is_not_overwritten(two_classes, tmp_path):
    file = tmp_path / "mine.npy"
    file.write_text("mine")
    with pytest.raises(FileExistsError, match=r"mine.npy' exists: delete it, name another"):
        load_image_folder(two_classes, mmap_file=file)
    assert file.read_text() == "mine"


def test_a_file_that_appears_while_images_are_read_is_not_overwritten(tmp_path):
    file = tmp_path / "mine.npy"

    def images():
        yield GRAY
        file.write_text("mine")

    with pytest.raises(FileExistsError, match=r"mine.npy was written by something else"):
        _collecting.collect(images(), (1, *GRAY.shape), GRAY.dtype, file)
    assert file.read_text() == "mine"
    assert os.listdir(tmp_path) == ["mine.npy"]


def test_the_file_must_be_outside_of_the_folder_and_in_one_that_exists(two_classes, tmp_path):
    with pytest.raises(ValueError, match="must not be inside the folder that is read"):
        load_image_folder(two_classes, mmap_file=two_classes / "x.npy")
    with pytest.raises(FileNotFoundError, match="folder of mmap_file="):
        load_image_folder(two_classes, mmap_file=tmp_path / "nowhere" / "x.npy")


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """A temporary folder of the test's own, and a memory in which nothing fits."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(_collecting.tempfile, "tempdir", str(folder))
    monkeypatch.setattr(_collecting, "_memory", lambda: 0)
    return folder


def test_images_too_large_for_the_memory_go_to_a_file_that_disappears_with_them(
    two_classes, temporary
):
    bunch = load_image_folder(two_classes)
    (folder,) = temporary.iterdir()
    assert isinstance(bunch.data, np.memmap)
    assert bunch.data[:, 0, 0].tolist() == [1, 0, 2, 3]
    if os.name == "posix":
        assert folder.stat().st_mode & 0o077 == 0
    part = np.asarray(bunch.data)[1:]
    del bunch
    assert folder.exists()
    del part
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("is_named", [True, False])
def test_what_fails_in_the_middle_leaves_no_file(
    two_classes, temporary, monkeypatch, error, is_named
):
    convert = Image.Image.convert
    calls = []

    def failing(image, *arguments):
        calls.append(image)
        if len(calls) > 2 and isinstance(error, KeyboardInterrupt):
            raise error
        return convert(image, *arguments)

    def full(descriptor):
        raise error

    monkeypatch.setattr(Image.Image, "convert", failing)
    monkeypatch.setattr("sklearn_msf.persistence.whole_files.os.fsync", full)
    file = temporary / "images.npy" if is_named else None
    with pytest.raises(type(error)):
        load_image_folder(two_classes, mmap_file=file)
    assert list(temporary.iterdir()) == []


def test_a_file_without_a_readable_image_is_not_made(tmp_path):
    write(tmp_path / "images" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match="None of 1 files"):
        load_image_folder(tmp_path / "images", mmap_file=tmp_path / "x.npy")
    assert os.listdir(tmp_path) == ["images"]


def test_images_for_a_file_are_held_in_memory_one_by_one(tmp_path):
    for i in range(40):
        write(tmp_path / "images" / f"{i}.png", np.full((200, 200), i, np.uint8))
    tracemalloc.start()
    try:
        bunch = load_image_folder(tmp_path / "images", mmap_file=tmp_path / "x.npy")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert bunch.data.nbytes == 1_600_000
    assert peak < 0.5 * bunch.data.nbytes


def test_progress_is_shown_when_asked_for(two_classes, capsys):
    load_image_folder(two_classes)
    assert capsys.readouterr().err == ""
    load_image_folder(two_classes, verbose=1)
    assert "Reading images: 100%" in capsys.readouterr().err


def test_the_report_says_what_was_found(two_classes):
    write(two_classes / "well" / "d.png", np.zeros((9, 9, 3), np.uint8))
    (two_classes / "well" / "e.png").write_bytes(b"nothing")
    (two_classes / ".hidden").write_bytes(b"nothing")
    with pytest.warns(UserWarning, match="left out"):
        report = load_image_folder(two_classes, size=8).report
    assert str(report).splitlines() == [
        "5 images read, 1 files not",
        "sizes: 8 x 8 (4), 9 x 9 (1)",
        "bits a value: 8 (5)",
        "modes: L (4), RGB (1)",
        "not read: 'well/e.png': is neither PNG, JPEG, TIFF nor DICOM with its preamble",
        "ignored: '.hidden'",
    ]


def test_without_pillow_the_error_names_the_extra(two_classes, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=r'python -m pip install "sklearn-msf\[images\]"'):
        load_image_folder(two_classes)


def test_the_example_goes_from_a_folder_to_predictions(capsys, monkeypatch):
    matplotlib.use("agg")
    fit = MedSymmFlowClassifier.fit

    def short_fit(self, *arrays, **named):
        self.set_params(max_epochs=2, channels=8, device="cpu")
        return fit(self, *arrays, **named)

    monkeypatch.setattr(MedSymmFlowClassifier, "fit", short_fit)
    path = EXAMPLES / "gallery" / "plot_own_folder.py"
    example = runpy.run_path(str(path))
    assert "not read: 'scratched/notes.txt'" in capsys.readouterr().out
    assert len(example["labels"]) == 6
    assert set(example["classifier"].classes_) == {"scratched", "smooth"}
