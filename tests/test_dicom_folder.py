"""DICOM files of load_image_folder: values in their units, windows, frames and series."""

import sys
import warnings

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import set_pixel_data
from pydicom.uid import (
    MPEG2MPML,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
    RLELossless,
)
from test_image_folder import load_one, write

from sklearn_msf.datasets import load_image_folder

DEFLATED = DeflatedExplicitVRLittleEndian
STORED = (np.arange(48, dtype=np.uint16).reshape(6, 8) * 80).copy()
SIGNED = (STORED.astype(np.int16) - 2000).copy()
HEADER = {"RescaleSlope": 2, "RescaleIntercept": -1024}


def write_dicom(
    path, stored, *, photometric="MONOCHROME2", bits=12, syntax=ExplicitVRLittleEndian, **elements
):
    """Write a DICOM file of stored values with some elements."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = elements.pop("SOPClassUID", CTImageStorage)
    dataset.SOPInstanceUID = "1.2.3"
    dataset.Modality = "CT"
    set_pixel_data(dataset, stored, photometric, bits)
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    if syntax == RLELossless:
        dataset.compress(RLELossless)
    elif syntax == ExplicitVRBigEndian:
        dataset.PixelData = stored.byteswap().tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True, **encoding(syntax))
    return path


def encoding(syntax):
    # pydicom compares the encoding with the one that the data set was made for.
    return {} if syntax != ExplicitVRBigEndian else {"little_endian": False, "implicit_vr": False}


def lookup_table(values, first=0, bits=16):
    item = Dataset()
    item.LUTDescriptor = [len(values), first, bits]
    item["LUTDescriptor"].VR = "US"
    item.add_new("LUTData", "US", list(values))
    return item


def test_gray_values_are_rescaled_to_their_units(tmp_path):
    write_dicom(tmp_path / "IM0001", STORED, **HEADER)
    bunch = load_image_folder(tmp_path)
    assert bunch.data.dtype == np.float32
    np.testing.assert_array_equal(bunch.data[0], STORED * 2.0 - 1024)
    assert bunch.report.bit_depths == {12: 1}
    assert bunch.report.modalities == {"CT": 1}
    assert bunch.report.modes == {"MONOCHROME2": 1}


def test_signed_values_and_values_without_a_slope_are_as_stored(tmp_path):
    write_dicom(tmp_path / "a.dcm", SIGNED)
    np.testing.assert_array_equal(load_one(tmp_path), SIGNED.astype(np.float32))


def test_a_transfer_syntax_that_pydicom_cannot_decode_is_named_with_a_remedy(tmp_path):
    path = write_dicom(tmp_path / "IM0001", STORED)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = MPEG2MPML
    dataset.PixelData = encapsulate([bytes(64)])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)
    message = "transfer syntax MPEG2 Main Profile / Main Level.*convert the file to Explicit VR"
    with pytest.raises(ValueError, match=message):
        load_image_folder(tmp_path)


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DEFLATED, RLELossless],
    ids=lambda syntax: syntax.name,
)
def test_every_transfer_syntax_of_pydicom_itself_gives_the_same(tmp_path, syntax):
    write_dicom(tmp_path / "a.dcm", STORED, syntax=syntax, **HEADER)
    np.testing.assert_array_equal(load_one(tmp_path), STORED * 2.0 - 1024)


def test_a_modality_lookup_table_takes_the_place_of_the_slope(tmp_path):
    table = (np.arange(4096) * 3 + 7).tolist()
    write_dicom(tmp_path / "a.dcm", STORED, ModalityLUTSequence=[lookup_table(table)])
    np.testing.assert_array_equal(load_one(tmp_path), STORED * 3.0 + 7)


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_a_modality_lookup_table_may_begin_below_zero(tmp_path, photometric):
    stored = np.arange(-24, 24, dtype=np.int8).reshape(6, 8)
    table = lookup_table((np.arange(256) * 3 + 7).tolist())
    table["LUTDescriptor"].VR, table.LUTDescriptor = "SS", [256, -128, 16]
    elements = {"photometric": photometric, "bits": 8, "ModalityLUTSequence": [table]}
    write_dicom(tmp_path / "a.dcm", stored, **elements)
    values = (stored + 128.0) * 3 + 7
    expected = values if photometric == "MONOCHROME2" else 7 + 255 * 3 + 7 - values
    np.testing.assert_array_equal(load_one(tmp_path), expected)


# 12 bits hold 0 to 4095, or -2048 to 2047.
@pytest.mark.parametrize(
    ("stored", "expected"),
    [(STORED, 2.0 * (4095 - STORED) - 1024), (SIGNED, 2.0 * (-1.0 - SIGNED) - 1024)],
    ids=["unsigned", "signed"],
)
def test_monochrome1_is_inverted_in_the_range_of_the_stored_bits(tmp_path, stored, expected):
    write_dicom(tmp_path / "a.dcm", stored, photometric="MONOCHROME1", **HEADER)
    np.testing.assert_array_equal(load_one(tmp_path), expected)


def test_a_window_maps_its_range_to_0_to_255(tmp_path):
    write_dicom(tmp_path / "a.dcm", STORED, **HEADER)
    units = STORED * 2.0 - 1024
    expected = np.rint(np.clip((units - 300) / 1000 + 0.5, 0, 1) * 255)
    shown = load_one(tmp_path, window=(300, 1000))
    assert shown.dtype == np.uint8
    np.testing.assert_array_equal(shown, expected)
    write_dicom(tmp_path / "a.dcm", STORED, photometric="MONOCHROME1", **HEADER)
    np.testing.assert_array_equal(load_one(tmp_path, window=(300, 1000)), 255 - expected)


def test_the_window_of_the_file_follows_the_standard(tmp_path):
    # PS3.3, C.11.2.1.2.1: linear from center - 0.5 - (width - 1) / 2 on; of two the first.
    write_dicom(tmp_path / "a.dcm", STORED, WindowCenter=[1000, 9], WindowWidth=[1401, 9], **HEADER)
    units = STORED * 2.0 - 1024
    expected = np.rint(np.clip((units - 999.5) / 1400 + 0.5, 0, 1) * 255)
    np.testing.assert_array_equal(load_one(tmp_path, window="file"), expected)
    # PS3.3, C.11.2.1.3.1.
    write_dicom(
        tmp_path / "a.dcm",
        STORED,
        WindowCenter=1000,
        WindowWidth=1400,
        VOILUTFunction="SIGMOID",
        **HEADER,
    )
    expected = np.rint(255 / (1 + np.exp(-4 * (units - 1000) / 1400)))
    np.testing.assert_array_equal(load_one(tmp_path, window="file"), expected)


def test_a_lookup_table_of_the_file_is_its_window_if_it_has_no_other(tmp_path):
    table = np.linspace(4095, 0, 4096).astype(int).tolist()
    write_dicom(tmp_path / "a.dcm", STORED, VOILUTSequence=[lookup_table(table, bits=12)])
    expected = np.rint((4095 - STORED) / 4095 * 255)
    np.testing.assert_array_equal(load_one(tmp_path, window="file"), expected)


@pytest.mark.parametrize("first", [0, 100])
def test_a_lookup_table_of_few_bits_may_have_many_entries(tmp_path, first):
    table = np.rint(np.linspace(0, 255, 4096)).astype(int)
    lookup = lookup_table(table.tolist(), first=first, bits=8)
    write_dicom(tmp_path / "a.dcm", STORED, VOILUTSequence=[lookup])
    expected = table[np.clip(STORED.astype(int) - first, 0, 4095)]
    np.testing.assert_array_equal(load_one(tmp_path, window="file"), expected)


def test_a_lookup_table_with_values_beyond_its_bits_is_refused(tmp_path):
    lookup = lookup_table(list(range(300)), bits=8)
    write_dicom(tmp_path / "a.dcm", STORED, VOILUTSequence=[lookup])
    with pytest.raises(ValueError, match="table has values of more than its 8 bits"):
        load_image_folder(tmp_path, window="file")


def test_a_file_without_a_window_is_named(tmp_path):
    write_dicom(tmp_path / "a.dcm", STORED)
    with pytest.raises(ValueError, match=r"'a.dcm': has no window: pass window=\(center, width\)"):
        load_image_folder(tmp_path, window="file")


def test_colours_are_8_bits_and_palettes_are_looked_up(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    write_dicom(tmp_path / "a.dcm", rgb, photometric="RGB", bits=8)
    np.testing.assert_array_equal(load_one(tmp_path), rgb)

    indices = np.arange(48, dtype=np.uint8).reshape(6, 8) % 3
    palette = {"Red": [65535, 0, 256], "Green": [0, 512, 0], "Blue": [0, 0, 768]}
    elements = {}
    for name, values in palette.items():
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [3, 0, 16]
        elements[f"{name}PaletteColorLookupTableData"] = np.array(values, "<u2").tobytes()
    write_dicom(tmp_path / "a.dcm", indices, photometric="PALETTE COLOR", bits=8, **elements)
    colors = np.array([[255, 0, 0], [0, 2, 0], [1, 0, 3]])
    np.testing.assert_array_equal(load_one(tmp_path), colors[indices])


def test_entries_of_a_palette_with_8_bits_may_be_stored_in_16(tmp_path):
    indices = np.arange(48, dtype=np.uint8).reshape(6, 8)
    elements = {}
    for name in ("Red", "Green", "Blue"):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 8]
        elements[f"{name}PaletteColorLookupTableData"] = np.arange(256, dtype="<u2").tobytes()
    write_dicom(tmp_path / "a.dcm", indices, photometric="PALETTE COLOR", bits=8, **elements)
    np.testing.assert_array_equal(load_one(tmp_path), np.stack([indices] * 3, axis=-1))


def test_entries_of_a_palette_are_scaled_as_they_are_stored(tmp_path):
    indices = np.arange(48, dtype=np.uint8).reshape(6, 8)
    halves = {
        "a": ([256, 0, 16], np.arange(256, dtype=np.uint8)),
        "b": ([256, 0, 8], np.arange(256, dtype="<u2") * 257),
    }
    for folder, (descriptor, entries) in halves.items():
        elements = {}
        for name in ("Red", "Green", "Blue"):
            elements[f"{name}PaletteColorLookupTableDescriptor"] = descriptor
            elements[f"{name}PaletteColorLookupTableData"] = entries.tobytes()
        path = tmp_path / folder / "x.dcm"
        write_dicom(path, indices, photometric="PALETTE COLOR", bits=8, **elements)
        np.testing.assert_array_equal(load_one(tmp_path / folder)[..., 0], indices)


def palette_of(values, *, first=0, bits=16, n=None, prefix="", dtype="<u2"):
    """Elements of a palette whose three channels are one."""
    n = len(values) if n is None else n
    elements = {}
    for name in ("Red", "Green", "Blue"):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [n, first, bits]
        data = np.asarray(values, dtype).tobytes()
        elements[f"{prefix}{name}PaletteColorLookupTableData"] = data
    return elements


def test_what_lies_beyond_a_palette_has_its_last_colour(tmp_path):
    indices = np.array([[0, 255], [256, 300]], dtype=np.uint16)
    palette = palette_of(np.arange(256), bits=8, dtype=np.uint8)
    write_dicom(tmp_path / "a.dcm", indices, photometric="PALETTE COLOR", bits=16, **palette)
    np.testing.assert_array_equal(load_one(tmp_path)[..., 0], [[0, 255], [255, 255]])


def test_palettes_are_read_in_the_byte_order_of_the_file(tmp_path):
    indices = np.arange(48, dtype=np.uint8).reshape(6, 8)
    for name, values, bits in (("upper", np.arange(256) << 8, 16), ("lower", np.arange(256), 8)):
        palette = palette_of(values, bits=bits, dtype=">u2")
        folder = tmp_path / name
        write_dicom(
            folder / "a.dcm",
            indices,
            photometric="PALETTE COLOR",
            bits=8,
            syntax=ExplicitVRBigEndian,
            **palette,
        )
        np.testing.assert_array_equal(load_one(folder)[..., 0], indices)


def test_long_palettes_of_8_bits_are_refused(tmp_path):
    indices = np.array([[0, 300]], dtype=np.uint16)
    palette = palette_of(np.arange(512) % 256, bits=8, dtype=np.uint8)
    write_dicom(tmp_path / "a.dcm", indices, photometric="PALETTE COLOR", bits=16, **palette)
    with pytest.raises(ValueError, match="a palette of 512 colours of 8 bits"):
        load_image_folder(tmp_path)


def test_segmented_palettes_are_looked_up(tmp_path):
    indices = np.arange(4, dtype=np.uint8).reshape(2, 2)
    # One segment of opcode 0: four entries one by one.
    palette = palette_of([0, 4, 0, 256, 512, 65535], n=4, prefix="Segmented")
    write_dicom(tmp_path / "a.dcm", indices, photometric="PALETTE COLOR", bits=8, **palette)
    np.testing.assert_array_equal(load_one(tmp_path)[..., 0], [[0, 1], [2, 255]])


def test_bits_at_the_upper_end_are_refused(tmp_path):
    write_dicom(tmp_path / "a.dcm", STORED, HighBit=15)
    with pytest.raises(ValueError, match="its 12 bits elsewhere than at the lower end"):
        load_image_folder(tmp_path)


def test_empty_elements_are_absent_and_half_a_rescaling_is_refused(tmp_path):
    empty = {"RescaleSlope": None, "RescaleIntercept": None}
    write_dicom(tmp_path / "a" / "a.dcm", STORED, **empty)
    np.testing.assert_array_equal(load_one(tmp_path / "a"), STORED)
    table = {"VOILUTSequence": [lookup_table([0, 0, 5, 255], bits=8)]}
    window = {"WindowCenter": None, "WindowWidth": None}
    write_dicom(tmp_path / "b" / "b.dcm", STORED, **window, **table)
    assert load_one(tmp_path / "b", window="file").max() == 255
    for number, half in enumerate([{"RescaleIntercept": -1024}, {**empty, "RescaleSlope": 2}]):
        write_dicom(tmp_path / "c" / f"{number}.dcm", STORED, **half)
    with pytest.raises(ValueError, match="only one of RescaleSlope and RescaleIntercept"):
        load_image_folder(tmp_path / "c")


def test_an_index_of_dicom_files_is_no_image(tmp_path):
    for label in ("ill", "well"):
        write_dicom(tmp_path / label / "a.dcm", STORED)
    write_dicom(tmp_path / "DICOMDIR", STORED)
    bunch = load_image_folder(tmp_path)
    assert bunch.filenames.tolist() == ["ill/a.dcm", "well/a.dcm"]
    assert "DICOMDIR" in bunch.report.ignored


def test_luma_and_chroma_become_rgb(tmp_path):
    # A gray of 90 has a chroma of 128.
    ybr = np.broadcast_to(np.array([90, 128, 128], np.uint8), (6, 8, 3)).copy()
    write_dicom(tmp_path / "a.dcm", ybr, photometric="YBR_FULL", bits=8)
    assert (load_one(tmp_path) == 90).all()


def test_frames_are_slices_and_each_has_its_own_slope(tmp_path):
    stored = np.stack([STORED, STORED // 2, STORED // 4])

    def group(slope):
        macro = Dataset()
        macro.RescaleSlope, macro.RescaleIntercept = slope, -10
        frame = Dataset()
        frame.PixelValueTransformationSequence = [macro]
        return frame

    write_dicom(
        tmp_path / "a.dcm",
        stored,
        SOPClassUID=EnhancedCTImageStorage,
        PerFrameFunctionalGroupsSequence=[group(slope) for slope in (1, 2, 4)],
    )
    volume = load_one(tmp_path, volumes=True)
    expected = stored * np.array([1.0, 2.0, 4.0])[:, None, None] - 10
    np.testing.assert_array_equal(volume, expected)


def test_what_all_frames_share_is_found(tmp_path):
    macro, window, shared = Dataset(), Dataset(), Dataset()
    macro.RescaleSlope, macro.RescaleIntercept = 3, 5
    window.WindowCenter, window.WindowWidth = 1000, 1401
    shared.PixelValueTransformationSequence = [macro]
    shared.FrameVOILUTSequence = [window]
    write_dicom(tmp_path / "a.dcm", STORED, SharedFunctionalGroupsSequence=[shared])
    np.testing.assert_array_equal(load_one(tmp_path), STORED * 3.0 + 5)
    expected = np.rint(np.clip((STORED * 3.0 + 5 - 999.5) / 1400 + 0.5, 0, 1) * 255)
    np.testing.assert_array_equal(load_one(tmp_path, window="file"), expected)


def write_series(folder, places, series="1.2"):
    """Slices whose value is their place; the names are in the opposite order."""
    for i, place in enumerate(places):
        write_dicom(
            folder / f"{len(places) - i}.dcm",
            np.full((4, 4), i, np.uint16),
            SeriesInstanceUID=series,
            **place,
        )


@pytest.mark.parametrize(
    "places",
    [
        # Sagittal slices: the normal of rows along y and columns along -z is -x.
        [
            {
                "ImageOrientationPatient": [0, 1, 0, 0, 0, -1],
                "ImagePositionPatient": [-2.5 * i, 7, 9],
                "InstanceNumber": 1,
            }
            for i in range(-1, 2)
        ],
        [{"InstanceNumber": i} for i in (2, 9, 10)],
    ],
    ids=["position", "number"],
)
def test_slices_are_ordered_by_position_or_else_by_number(tmp_path, places):
    write_series(tmp_path / "ill" / "v", places)
    write_series(tmp_path / "well" / "v", places)
    bunch = load_image_folder(tmp_path, volumes=True)
    assert bunch.filenames.tolist() == ["ill/v", "well/v"]
    assert bunch.data[0, :, 0, 0].tolist() == [0, 1, 2]


def test_slices_of_which_only_some_have_a_position_are_no_volume(tmp_path):
    axes = [1, 0, 0, 0, 1, 0]
    with_position = [
        {"InstanceNumber": i, "ImageOrientationPatient": axes, "ImagePositionPatient": [0, 0, i]}
        for i in range(2)
    ]
    write_series(tmp_path / "ill" / "v", [*with_position, {"InstanceNumber": 2}])
    write_series(tmp_path / "ill" / "w", [{"InstanceNumber": 2}, {}])
    write_series(tmp_path / "ill" / "x", with_position)
    with pytest.warns(UserWarning, match="only some of its slices have a position"):
        bunch = load_image_folder(tmp_path, volumes=True)
    assert bunch.filenames.tolist() == ["ill/x"]


def test_slices_at_one_position_or_of_several_series_are_no_volume(tmp_path):
    write_series(tmp_path / "ill" / "v", [{"InstanceNumber": 1}, {"InstanceNumber": 1}])
    write_dicom(tmp_path / "ill" / "w" / "1.dcm", STORED, SeriesInstanceUID="1.2")
    write_dicom(tmp_path / "ill" / "w" / "2.dcm", STORED, SeriesInstanceUID="1.3")
    with pytest.raises(ValueError, match="None of 2 files") as caught:
        load_image_folder(tmp_path, volumes=True)
    assert "'ill/v': several of its slices have the same InstanceNumber" in str(caught.value)
    assert "'ill/w': its slices have different series: 1.2 and 1.3" in str(caught.value)


def test_slices_of_several_orientations_are_no_volume(tmp_path):
    axial, coronal = [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1]
    nearly_axial = [1, 1e-4, 0, 0, 1, 1e-4]
    volumes = {"ill/v": (axial, coronal), "ill/w": (axial, nearly_axial)}
    for name, axes in {**volumes, "well/x": (axial, axial)}.items():
        write_series(
            tmp_path / name,
            [
                {"ImageOrientationPatient": each, "ImagePositionPatient": [i, 2 * i, 3 * i]}
                for i, each in enumerate(axes)
            ],
        )
    with pytest.warns(UserWarning, match="its slices have different orientations"):
        bunch = load_image_folder(tmp_path, volumes=True)
    assert bunch.filenames.tolist() == ["ill/w", "well/x"]


def test_bits_that_differ_without_units_are_warned_of(tmp_path):
    for bits in (10, 12):
        write_dicom(tmp_path / f"{bits}.dcm", STORED % 1000, bits=bits, Modality="CR")
    with pytest.warns(UserWarning, match="images 1 have 10 and 1 have 12 bits, and all are kept"):
        load_image_folder(tmp_path)
    # Hounsfield units are units however many bits are stored, and a window is the same for all.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_image_folder(tmp_path, window=(500, 1000))
        for bits in (10, 12):
            write_dicom(tmp_path / f"{bits}.dcm", STORED % 1000, bits=bits)
        load_image_folder(tmp_path)


def test_the_patient_of_the_file_is_its_group(tmp_path):
    for i, patient in enumerate(["P1", "P2", "P1"]):
        write_dicom(tmp_path / "ill" / f"{i}.dcm", STORED, PatientID=patient)
        write_dicom(tmp_path / "well" / f"{i}.dcm", STORED, PatientID="P3")
    bunch = load_image_folder(tmp_path, groups="PatientID")
    assert bunch.groups.tolist() == ["P1", "P2", "P1", "P3", "P3", "P3"]
    write_dicom(tmp_path / "ill" / "9.dcm", STORED)
    with pytest.raises(ValueError, match=r"1 files have no PatientID: 'ill/9.dcm'"):
        load_image_folder(tmp_path, groups="PatientID")


def test_several_modalities_are_named(tmp_path):
    write_dicom(tmp_path / "a.dcm", STORED)
    write_dicom(tmp_path / "b.dcm", STORED, Modality="MR")
    with pytest.warns(UserWarning, match="several modalities, {'CT': 1, 'MR': 1}: if their values"):
        load_image_folder(tmp_path)


def test_units_beside_8_bit_images_are_refused_and_a_window_makes_them_one(tmp_path):
    write_dicom(tmp_path / "a.dcm", STORED)
    write(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"float32 \(1, such as 'a.dcm'\), uint8 .*window=\(cent"):
        load_image_folder(tmp_path)
    assert load_image_folder(tmp_path, window=(1000, 2000)).data.dtype == np.uint8


def test_resized_units_stay_units_and_bars_have_the_smallest_value(tmp_path):
    write_dicom(tmp_path / "a.dcm", STORED, **HEADER)
    image = load_one(tmp_path, size=(12, 8), fit="pad")
    assert image.dtype == np.float32
    assert (image[:3] == -1024).all()
    np.testing.assert_array_equal(image[3:9], STORED * 2.0 - 1024)


def without_pixels(path):
    dataset = pydicom.dcmread(write_dicom(path, STORED))
    for keyword in ("Rows", "Columns", "PixelData"):
        delattr(dataset, keyword)
    dataset.save_as(path)


def without_pixel_data(path):
    dataset = pydicom.dcmread(write_dicom(path, STORED))
    del dataset.PixelData
    dataset.save_as(path)


def of_unknown_syntax(path):
    dataset = pydicom.dcmread(write_dicom(path, STORED))
    dataset.file_meta.TransferSyntaxUID = "1.2.3.4.5"
    dataset.save_as(path, implicit_vr=False, little_endian=True)


def without_a_handler(path):
    dataset = pydicom.dcmread(write_dicom(path, STORED))
    dataset.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    dataset.save_as(path)


def with_more_frames_than_it_says(path):
    dataset = pydicom.dcmread(write_dicom(path, STORED))
    dataset.PixelData *= 2
    dataset.save_as(path)


def truncated(path):
    content = write_dicom(path, STORED).read_bytes()
    path.write_bytes(content[:-10])


def without_its_beginning(path):
    path.write_bytes(write_dicom(path, STORED).read_bytes()[132:])


def of_an_odd_kind(path):
    write_dicom(path, STORED, PhotometricInterpretation="HSV")


def of_not_a_number(path):
    path.write_bytes(
        write_dicom(path, STORED, NumberOfFrames=11)
        .read_bytes()
        .replace(b"IS\x02\x0011", b"IS\x02\x001A")
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (without_pixels, "DICOM without pixels: CT Image Storage"),
        (without_pixel_data, "AttributeError: "),
        (of_unknown_syntax, "1.2.3.4.5"),
        (without_a_handler, "RuntimeError: Unable to deco.*(pylibjpeg|gdcm)"),
        (with_more_frames_than_it_says, "has pixels of shape .2, 6, 8., but its header says .1,"),
        (truncated, "number of bytes of pixel data is less than expected"),
        (without_its_beginning, "neither PNG, JPEG, TIFF nor DICOM with its preamble"),
        (of_an_odd_kind, "has the photometric interpretation 'HSV'"),
        (of_not_a_number, "has no whole number as NumberOfFrames"),
    ],
)
def test_a_dicom_file_that_cannot_be_read_is_left_out_with_its_reason(tmp_path, make, message):
    write_dicom(tmp_path / "a.dcm", STORED)
    make(tmp_path / "b.dcm")
    with pytest.warns(UserWarning, match=f"1 of 2 files are left out: 'b.dcm': .*{message}"):
        bunch = load_image_folder(tmp_path)
    assert bunch.filenames.tolist() == ["a.dcm"]


def test_remarks_of_pydicom_are_in_the_report(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", STORED)
    dataset = pydicom.dcmread(path)
    dataset.PixelData += bytes(10)
    dataset.save_as(path)
    bunch = load_image_folder(tmp_path)
    assert "excess padding" in bunch.report.remarks["a.dcm"][0]


def test_without_pydicom_the_error_names_the_extra(tmp_path, monkeypatch):
    write_dicom(tmp_path / "a.dcm", STORED)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImportError, match=r'python -m pip install "sklearn-msf\[dicom\]"'):
        load_image_folder(tmp_path)


def test_slices_of_several_modalities_or_numbers_of_bits_are_no_volume(tmp_path):
    eight = (STORED // 16).astype(np.uint8)
    volumes = {"ill/v": ("OT", "OT"), "ill/w": ("CT", "PT"), "well/x": ("MR", "MR")}
    for name, modalities in volumes.items():
        files = zip((eight, STORED), (8, 12), modalities, strict=True)
        for i, (stored, bits, modality) in enumerate(files):
            path = tmp_path / name / f"{i}.dcm"
            write_dicom(path, stored, bits=bits, Modality=modality, InstanceNumber=i)
    # Values of CT, PET and MR have units, or a scale of each image.
    with pytest.warns(UserWarning, match="2 of 3") as caught:
        bunch = load_image_folder(tmp_path, volumes=True)
    message = str(caught[0].message)
    assert "'ill/v': its slices have different numbers of bits: 8 and 12" in message
    assert "'ill/w': its slices have different modalities: CT and PT" in message
    assert bunch.filenames.tolist() == ["well/x"]
