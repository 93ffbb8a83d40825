"""Damaged and hostile image files: refused by name, in little time and memory."""

import os
import struct
import warnings
import zlib

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.uid import RLELossless
from test_dicom_folder import DEFLATED, HEADER, STORED, write_dicom
from test_image_folder import GRAY, write

from sklearn_msf.datasets import _image_headers, _pillow_files, load_image_folder
from sklearn_msf.persistence.limits import MAX_VALUES


def reason(folder, **options):
    """The reason for which the only file of a folder is refused."""
    with pytest.raises(ValueError, match="None of 1 files") as caught:
        load_image_folder(folder, **options)
    return str(caught.value).split("can be read: ")[1]


def png(width, height):
    """A PNG that claims a size, and has no pixels."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_the_largest_image_is_that_of_a_saved_model():
    assert _image_headers.MAX_VALUES == MAX_VALUES


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path):
    (tmp_path / "a.png").write_bytes(png(60_000, 60_000))
    assert "DecompressionBombError: Image size (3600000000 pixels) exceeds limit" in reason(
        tmp_path
    )


def test_colour_images_of_more_than_the_limit_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(_image_headers, "MAX_VALUES", 100)
    write(tmp_path / "a.png", np.zeros((6, 6, 3), np.uint8))
    assert "has 108 values (frames, height, width and channels are (1, 6, 6, 3))" in reason(
        tmp_path
    )


def test_all_pages_of_a_file_count(tmp_path, monkeypatch):
    monkeypatch.setattr(_image_headers, "MAX_VALUES", 100)
    pages = [Image.fromarray(np.zeros((6, 6), np.uint8))] * 3
    write(tmp_path / "a.tif", pages[0], save_all=True, append_images=pages[1:])
    assert "has 108 values" in reason(tmp_path, volumes=True)


@pytest.mark.parametrize(
    "elements", [{"Rows": 65535, "Columns": 65535}, {"NumberOfFrames": 2**31 - 1}]
)
def test_a_dicom_file_that_claims_too_many_pixels_is_refused(tmp_path, elements):
    write_dicom(tmp_path / "a.dcm", STORED, **elements)
    assert "values (frames, height, width and channels are" in reason(tmp_path, volumes=True)


def test_more_frames_than_the_header_says_are_not_decoded(tmp_path, monkeypatch):
    path = write_dicom(tmp_path / "a.dcm", STORED, syntax=RLELossless)
    dataset = pydicom.dcmread(path)
    (frame,) = pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1)
    # All entries are of one frame, so the file hardly grows.
    n = 1000
    dataset.ExtendedOffsetTable = bytes(8 * n)
    dataset.ExtendedOffsetTableLengths = len(frame).to_bytes(8, "little") * n
    dataset.save_as(path)
    monkeypatch.setattr(pydicom.pixels, "pixel_array", None)
    assert "holds more frames than its header says (1)" in reason(tmp_path)


def test_pages_unlike_the_first_are_refused_at_the_first_of_them(tmp_path, monkeypatch):
    pages = [Image.new("L", (1, 1)), *[Image.new("1", (300, 300))] * 5]
    write(tmp_path / "a.tif", pages[0], save_all=True, append_images=pages[1:])
    read, values = [], _pillow_files._values
    monkeypatch.setattr(_pillow_files, "_values", lambda i: read.append(i.size) or values(i))
    assert "has pages of different shapes or bits" in reason(tmp_path, volumes=True)
    assert read == [(1, 1), (300, 300)]


def test_a_deflated_dicom_file_is_measured_before_it_is_inflated(tmp_path, monkeypatch):
    zeros = np.zeros((2048, 2048), np.uint16)
    write_dicom(tmp_path / "a.dcm", zeros, syntax=DEFLATED)
    assert (tmp_path / "a.dcm").stat().st_size < 2**16
    assert load_image_folder(tmp_path).data.shape == (1, 2048, 2048)
    monkeypatch.setattr("sklearn_msf.datasets._dicom_files.MAX_FILE_BYTES", 2**20)
    read = []
    monkeypatch.setattr(pydicom, "dcmread", lambda *arguments, **options: read.append(arguments))
    assert "has more than 1,048,576 bytes once it is inflated" in reason(tmp_path)
    assert read == []


@pytest.mark.parametrize("name", ["a.dcm", "a.png"])
def test_a_file_of_more_bytes_than_any_image_is_not_opened(tmp_path, name):
    start = bytes(128) + b"DICM" if name == "a.dcm" else b"\x89PNG\r\n\x1a\n"
    with open(tmp_path / name, "wb") as file:
        file.write(start)
        file.truncate(_image_headers.MAX_FILE_BYTES + 1)
    assert "has 2,147,483,649 bytes; at most 2,147,483,648 are read" in reason(tmp_path)


def test_a_large_element_of_a_header_is_not_read_with_the_header(tmp_path, monkeypatch):
    path = write_dicom(tmp_path / "a.dcm", STORED, PixelPaddingValue=0)
    dataset = pydicom.dcmread(path)
    dataset.add_new(0x00091010, "OB", bytes(2**21))
    dataset.save_as(path)
    options = []
    read = pydicom.dcmread

    def watched(path, **given):
        options.append(given)
        return read(path, **given)

    monkeypatch.setattr(pydicom, "dcmread", watched)
    assert load_image_folder(tmp_path).data.shape == (1, *STORED.shape)
    assert options[0] == {"stop_before_pixels": True, "defer_size": 2**20}


@pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
def test_links_and_what_is_no_file_are_not_opened(tmp_path):
    folder = tmp_path / "images"
    write(folder / "ill" / "a.png")
    write(tmp_path / "secret" / "s.png")
    os.symlink(tmp_path / "secret", folder / "well")
    os.symlink(tmp_path / "secret" / "s.png", folder / "ill" / "b.png")
    os.symlink(folder, folder / "ill" / "loop")
    os.symlink(tmp_path / "nothing", folder / "ill" / "dangling.png")
    os.mkfifo(folder / "ill" / "pipe.png")
    with (
        pytest.warns(UserWarning, match="5 of 6 files are left out"),
        pytest.warns(UserWarning, match="one class, 'ill'"),
    ):
        bunch = load_image_folder(folder)
    assert bunch.filenames.tolist() == ["ill/a.png"]
    link = "is a symbolic link, which is not followed"
    assert bunch.report.unreadable == {
        "well": link,
        "ill/b.png": link,
        "ill/dangling.png": link,
        "ill/loop": link,
        "ill/pipe.png": "is no regular file",
    }


@pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
def test_a_volume_with_a_linked_slice_is_left_out(tmp_path):
    write(tmp_path / "images" / "ill" / "v" / "1.png")
    write(tmp_path / "images" / "ill" / "w" / "1.png")
    os.symlink(tmp_path / "images" / "ill" / "w" / "1.png", tmp_path / "images/ill/v/2.png")
    write(tmp_path / "images" / "well" / "x" / "1.png")
    with pytest.warns(UserWarning, match="1 of 3 files"):
        bunch = load_image_folder(tmp_path / "images", volumes=True)
    assert bunch.filenames.tolist() == ["ill/w", "well/x"]
    assert "slice 'ill/v/2.png' is a symbolic link" in bunch.report.unreadable["ill/v"]


@pytest.mark.skipif(os.name != "posix", reason="other systems refuse such names")
def test_names_that_are_no_text_are_read_and_shown(tmp_path):
    for name in (b"\xff.png", b"\x1b[31m.png"):
        write(tmp_path / "x.png").rename(tmp_path / os.fsdecode(name))
    (tmp_path / os.fsdecode(b"\xfe")).write_bytes(b"nothing")
    with pytest.warns(UserWarning, match=r"'\\udcfe': is neither"):
        bunch = load_image_folder(tmp_path)
    assert len(bunch.data) == 2
    str(bunch.report).encode()


@pytest.fixture(scope="module")
def good_files(tmp_path_factory):
    """The bytes of a good file of each format."""
    folder = tmp_path_factory.mktemp("good")
    paths = [write(folder / f"a.{ending}") for ending in ("png", "jpg", "tif")]
    paths.append(write_dicom(folder / "a.dcm", STORED, **HEADER))
    return {path.suffix: path.read_bytes() for path in paths}


@pytest.mark.parametrize("ending", [".png", ".jpg", ".tif", ".dcm"])
def test_a_damaged_file_is_read_or_left_out_and_does_nothing_to_others(
    good_files, tmp_path, ending
):
    content = good_files[ending]
    write(tmp_path / "a.png", GRAY)
    path = tmp_path / f"b{ending}"
    places = st.integers(0, len(content) - 1)

    @settings(max_examples=40)
    @given(st.dictionaries(places, st.integers(0, 255), max_size=5), st.none() | places)
    def check(changes, end):
        damaged = bytearray(content)
        for place, value in changes.items():
            damaged[place] = value
        path.write_bytes(damaged[:end])
        with warnings.catch_warnings(action="ignore"):
            try:
                bunch = load_image_folder(tmp_path, size=GRAY.shape, color="gray", window=(0, 9))
            except ValueError as error:
                # A changed header can say 16 bits.
                assert "several bit depths" in str(error)  # noqa: PT017
                return
        assert len(bunch.data) + len(bunch.report.unreadable) == 2
        np.testing.assert_array_equal(bunch.data[0], GRAY)

    check()
