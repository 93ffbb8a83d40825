"""Tables of file, label, group and volume for load_image_folder."""

import contextlib
import locale
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_image_folder import write

from sklearn_msf.datasets import load_image_folder


@pytest.fixture
def images(tmp_path):
    """A folder with files whose number is their value."""
    for i, name in enumerate(["a.png", "b.png", "deep/er/c.png"]):
        write(tmp_path / "images" / name, np.full((4, 4), i, np.uint8))
    return tmp_path / "images"


def table(**columns):
    return pd.DataFrame({"file": ["b.png", "deep/er/c.png", "a.png"], **columns})


def as_csv(frame, folder):
    frame.to_csv(folder / "labels.csv", index=False)
    return folder / "labels.csv"


@pytest.mark.parametrize("is_csv", [False, True])
def test_a_table_names_files_labels_and_groups_and_keeps_its_order(images, tmp_path, is_csv):
    frame = table(label=["ill", "well", "ill"], group=["p2", "p1", "p2"], other=[1, 2, 3])
    bunch = load_image_folder(images, labels=as_csv(frame, tmp_path) if is_csv else frame)
    assert bunch.filenames.tolist() == ["b.png", "deep/er/c.png", "a.png"]
    assert bunch.data[:, 0, 0].tolist() == [1, 2, 0]
    assert bunch.target.tolist() == ["ill", "well", "ill"]
    assert bunch.target_names == ["ill", "well"]
    assert bunch.groups.tolist() == ["p2", "p1", "p2"]


@pytest.mark.parametrize("missing", ["", " ", "NA", "nan", "N/A", "#N/A", "<NA>", "NULL"])
def test_what_programs_write_for_a_missing_label_is_no_class(images, tmp_path, missing):
    (tmp_path / "labels.csv").write_text(f"file,label\nb.png,ill\na.png,{missing}\n")
    with pytest.raises(ValueError, match="column 'label' of labels is empty .* first row 1"):
        load_image_folder(images, labels=tmp_path / "labels.csv")


def test_two_spellings_are_two_files_unless_the_system_has_no_capitals(images, monkeypatch):
    frame = pd.DataFrame({"file": ["b.png", "B.png"], "label": [0, 1]})
    if not (images / "B.png").exists():
        shutil.copy(images / "b.png", images / "B.png")
        assert len(load_image_folder(images, labels=frame).data) == 2
        monkeypatch.setattr(Path, "samefile", lambda one, other: True)
    with pytest.raises(ValueError, match=r"one file as 'b.png' in row 0 and as 'B.png' in row 1"):
        load_image_folder(images, labels=frame)


def test_none_may_be_a_class(images, tmp_path):
    (tmp_path / "labels.csv").write_text("file,label\nb.png,cancer\na.png,None\n")
    bunch = load_image_folder(images, labels=tmp_path / "labels.csv")
    assert bunch.target_names == ["None", "cancer"]


def test_labels_of_a_csv_file_are_text_and_those_of_a_frame_what_they_are(images, tmp_path):
    frame = table(label=[3, 10, 3])
    assert load_image_folder(images, labels=frame).target_names == [3, 10]
    assert load_image_folder(images, labels=as_csv(frame, tmp_path)).target_names == ["10", "3"]


@pytest.mark.parametrize("dtype", ["category", "string", "object"])
def test_labels_of_every_kind_of_column_are_taken(images, dtype):
    bunch = load_image_folder(images, labels=table(label=pd.Series(["x", "y", "x"], dtype=dtype)))
    assert bunch.target.tolist() == ["x", "y", "x"]
    assert bunch.target.dtype.kind == "U"


def test_a_table_without_labels_is_for_predicting(images):
    bunch = load_image_folder(images, labels=table())
    assert bunch.target is None
    assert bunch.target_names == []
    assert bunch.groups is None


def test_groups_come_from_the_table_or_from_a_function_but_not_from_both(images):
    bunch = load_image_folder(images, labels=table(), groups=lambda file: len(file))
    assert bunch.groups.tolist() == [5, 13, 5]
    with pytest.raises(ValueError, match="either groups or a table with a column 'group'"):
        load_image_folder(images, labels=table(group=[1, 1, 2]), groups=len)


def test_absolute_paths_inside_the_folder_are_taken(images):
    frame = table()
    frame["file"] = [str(images / name) for name in frame["file"]]
    bunch = load_image_folder(images, labels=frame)
    assert bunch.filenames.tolist() == ["b.png", "deep/er/c.png", "a.png"]


def test_a_relative_folder_is_relative_to_the_current_one(images, monkeypatch):
    monkeypatch.chdir(images.parent)
    bunch = load_image_folder("images", labels=table(label=["x", "y", "x"]))
    assert len(bunch.data) == 3


@pytest.mark.parametrize("outside", ["../secret.png", "deep/../../secret.png", "/etc/passwd", "."])
def test_a_table_cannot_name_what_is_outside_of_the_folder(images, outside):
    write(images.parent / "secret.png")
    frame = table()
    frame.loc[1, "file"] = outside
    with pytest.raises(
        ValueError, match=r"labels names files that are not inside .*, in 1 of its rows \(row 1: "
    ):
        load_image_folder(images, labels=frame)


def changed(row, column, value):
    frame = table(label=["ill", "well", "ill"], group=[1, 2, 1]).astype(object)
    frame.loc[row, column] = value
    return frame


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (
            changed(1, "file", "no.png"),
            r"names files that are not in .*images', in 1 of its rows \(row 1: 'no.png'\)",
        ),
        (changed(1, "file", "deep"), "names files that are not in .*row 1: 'deep'"),
        (changed(1, "file", "a\0.png"), "names files that are not in"),
        (changed(1, "file", "ill\\a.png"), r"row 1: 'ill\\\\a.png'.*Write paths with / and not"),
        (changed(1, "file", "./b.png"), "names 'b.png' in row 0 and in row 1: name each file once"),
        (changed(1, "file", 7), "column 'file' of labels has 7 in row 1"),
        (changed(1, "file", None), "column 'file' of labels has None in row 1"),
        (
            changed(1, "label", None),
            r"'label' of labels is empty \(no text, NaN, NA, null or None\) in 1 of 3",
        ),
        (changed(1, "label", np.nan), "first row 1: fill it in, leave these rows out"),
        (
            changed(1, "label", pd.NA),
            "'label' of labels is empty .no text, NaN, NA, null or None. in 1 of 3",
        ),
        (changed(1, "label", 5), "'label' of labels mixes numbers, such as 5, and text"),
        (changed(1, "label", "Ill"), "labels have 'ill' and 'Ill', the same name but for case"),
        (changed(1, "label", " ill"), "labels have 'ill' and ' ill', the same name"),
        (changed(1, "group", np.nan), "column 'group' of labels is empty"),
        (table(volume=[1, 1, 2]), "has a column 'volume': pass volumes=True"),
        (table().iloc[:0], "labels is a table without rows"),
        (
            table().rename(columns={"file": "path"}),
            r"one column 'file'.*got the columns \['path'\]",
        ),
    ],
)
def test_what_is_wrong_in_a_table_is_named(images, tmp_path, frame, message):
    with pytest.raises(ValueError, match=message):
        load_image_folder(images, labels=frame, mmap_file=tmp_path / "x.npy")
    assert os.listdir(tmp_path) == ["images"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file;label\na.png;x\n", r"separated by commas; got the columns \['file;label'\]"),
        ("", r"got the columns \[\]"),
        ("file,label\n", "a table without rows"),
        ("file,file\na.png,b.png\n", "one column 'file'"),
        ("file,label\na.png,x,y\n", "has 2 columns, but 3 values in row 0"),
        ("file,label\na.png\n", "has 2 columns, but 1 values in row 0"),
        ("file,label\na.png,\n", "'label' of labels is empty"),
        ("file,label\na.png,NaN\n", "'label' of labels is empty"),
        ('file,label\na.png,"x\n', "is no CSV file in UTF-8 with commas"),
        ("file,label\na.png,\xe4\n".encode("latin-1"), "is no CSV file in UTF-8"),
    ],
)
def test_what_is_wrong_in_a_csv_file_is_named(images, tmp_path, text, message):
    path = tmp_path / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        load_image_folder(images, labels=path)


def test_a_csv_file_of_a_spreadsheet_is_read_whatever_the_locale(images, tmp_path, monkeypatch):
    # A mark of the order of bytes, line ends of Windows, quotes, empty lines at the end.
    text = '\ufefffile,label\r\n"a.png","äß, x"\r\nb.png,y\r\n\r\n'
    (tmp_path / "labels.csv").write_bytes(text.encode())
    monkeypatch.setattr(locale, "getpreferredencoding", lambda do_setlocale=True: "ascii")
    bunch = load_image_folder(images, labels=str(tmp_path / "labels.csv"))
    assert bunch.target.tolist() == ["äß, x", "y"]


def test_a_missing_csv_file_is_an_os_error(images):
    with pytest.raises(FileNotFoundError, match=r"labels='no.csv' is no file"):
        load_image_folder(images, labels="no.csv")
    with pytest.raises(OSError, match="labels=|denied"):  # Windows opens no folder at all.
        load_image_folder(images, labels=images)


def test_rows_of_one_volume_are_its_slices(tmp_path):
    rows = []
    for volume in ("v", "w"):
        for i in (10, 9):
            name = f"{volume}{i}.png"
            write(tmp_path / name, np.full((4, 4), i, np.uint8))
            rows.append((name, volume, {"v": "ill", "w": "well"}[volume], volume.upper()))
    frame = pd.DataFrame(rows, columns=["file", "volume", "label", "group"])
    bunch = load_image_folder(tmp_path, labels=frame, volumes=True)
    assert bunch.filenames.tolist() == ["v", "w"]
    # Slices without a position are in the order of the rows.
    assert bunch.data[0, :, 0, 0].tolist() == [10, 9]
    assert bunch.target.tolist() == ["ill", "well"]
    assert bunch.groups.tolist() == ["V", "W"]
    frame.loc[1, "label"] = "well"
    with pytest.raises(ValueError, match="slices of volume 'v' several labels: 'ill', 'well'"):
        load_image_folder(tmp_path, labels=frame, volumes=True)


def test_a_volume_of_several_folders_is_refused(tmp_path):
    for folder in ("a", "b"):
        write(tmp_path / "p" / folder / "0.png", np.zeros((4, 4), np.uint8))
    frame = pd.DataFrame({"file": ["p/a", "p/b"], "volume": ["p", "p"]})
    with pytest.raises(ValueError, match="'p' has 2 rows in labels, of which some name folders"):
        load_image_folder(tmp_path, labels=frame, volumes=True)


@pytest.mark.parametrize("column", ["label", "group"])
@pytest.mark.parametrize("empty", ["", " "])
def test_empty_text_is_missing(images, column, empty):
    with pytest.raises(ValueError, match=rf"'{column}' of labels is empty .* first row 1"):
        load_image_folder(images, labels=table(**{column: ["u", empty, "v"]}))


@pytest.mark.parametrize("column", ["group", "volume"])
def test_groups_and_volumes_have_names_of_one_form(tmp_path, column):
    composed, decomposed = (unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD"))
    names = [composed, decomposed, "P7", "P7 "]
    for i in range(4):
        write(tmp_path / f"{i}.png")
    files = [f"{i}.png" for i in range(4)]
    frame = pd.DataFrame({"file": files, "label": [0, 0, 1, 1], column: names})
    found = f"column '{column}' of labels has 'P7' and 'P7 ', .* as different {column}s: give one"
    with contextlib.ExitStack() as expected:
        expected.enter_context(pytest.warns(UserWarning, match=found))
        volumes = {}
        if column == "volume":
            volumes = {"volumes": True, "size": 4}
            expected.enter_context(pytest.warns(UserWarning, match="2 of 3 volumes are single sl"))
        bunch = load_image_folder(tmp_path, labels=frame, **volumes)
    kept = bunch.filenames if column == "volume" else bunch.groups
    assert list(dict.fromkeys(kept.tolist())) == [composed, "P7", "P7 "]


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_files_are_found_in_whatever_form_of_unicode_a_table_names_them(tmp_path, forms):
    files = ["Müller/Röntgen.png", "Müller/Aufnahme.png"]
    on_disk, in_table = ([unicodedata.normalize(form, file) for file in files] for form in forms)
    for file in on_disk:
        write(tmp_path / file)
    frame = pd.DataFrame({"file": in_table, "label": [0, 1]})
    bunch = load_image_folder(tmp_path, labels=frame)
    assert bunch.target.tolist() == [0, 1]
    assert all((tmp_path / file).exists() for file in bunch.filenames)


def test_names_of_classes_have_one_form(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "Nävus") for form in ("NFC", "NFD"))
    for folder, name in (("train", composed), ("test", decomposed)):
        for label in (name, "other"):
            write(tmp_path / folder / label / "a.png")
        assert composed in load_image_folder(tmp_path / folder).target_names
    files = ["other/a.png", f"{composed}/a.png"]
    frame = pd.DataFrame({"file": files, "label": [decomposed, "other"]})
    bunch = load_image_folder(tmp_path / "train", labels=frame)
    assert bunch.target.tolist() == [composed, "other"]


def test_a_table_may_name_folders_of_slices(tmp_path):
    for i in range(3):
        write(tmp_path / "deep" / "v" / f"{i}.png", np.full((4, 4), i, np.uint8))
    frame = pd.DataFrame({"file": ["deep/v"]})
    bunch = load_image_folder(tmp_path, labels=frame, volumes=True)
    assert bunch.filenames.tolist() == ["deep/v"]
    assert bunch.data.shape == (1, 3, 4, 4)


@pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
def test_links_that_a_table_names_are_not_followed(images):
    write(images.parent / "secret" / "s.png")
    os.symlink(images.parent / "secret", images / "linked")
    os.symlink(images / "a.png", images / "link.png")
    frame = pd.DataFrame({"file": ["a.png", "linked/s.png", "link.png"]})
    with pytest.warns(UserWarning, match="2 of 3 files are left out"):
        bunch = load_image_folder(images, labels=frame)
    assert bunch.filenames.tolist() == ["a.png"]
    assert bunch.report.unreadable == dict.fromkeys(
        ["linked/s.png", "link.png"], "is a symbolic link, which is not followed"
    )


@pytest.mark.parametrize("is_csv", [False, True])
@pytest.mark.parametrize(
    ("name", "meant"),
    [(" group", "group"), ("Label", "label"), ("groups", "group"), ("LABELS ", "label")],
)
def test_a_column_that_was_meant_is_not_ignored(images, tmp_path, name, meant, is_csv):
    frame = table(**{name: ["p1", "p2", "p3"]})
    frame = as_csv(frame, tmp_path) if is_csv else frame
    with pytest.raises(ValueError, match=f"{name!r}, which would be ignored: call it {meant!r}"):
        load_image_folder(images, labels=frame)


@pytest.mark.parametrize("name", ["patient_id", "PatientID", "Subject"])
def test_a_column_of_patients_that_is_not_the_group_is_warned_of(images, name):
    patients = ["p1", "p1", "p2"]
    with pytest.warns(UserWarning, match=f"{name!r}, which is ignored: call it 'group'"):
        load_image_folder(images, labels=table(**{name: patients}))
    bunch = load_image_folder(images, labels=table(**{name: patients, "group": patients}))
    assert bunch.groups.tolist() == patients
    # Where the groups come from elsewhere nothing is ignored, and warnings are errors here.
    bunch = load_image_folder(images, labels=table(**{name: patients}), groups=lambda file: "p")
    assert set(bunch.groups) == {"p"}


def test_another_column_may_be_named_alike_beside_the_one_that_counts(images):
    frame = table(label=["ill", "well", "ill"], labels=["a", "b", "c"])
    assert load_image_folder(images, labels=frame).target.tolist() == ["ill", "well", "ill"]
