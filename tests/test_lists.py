"""Manifests and lists are read however editors and spreadsheets save them, or refused with the line and the fix."""

import codecs
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nrsrd_jax.data import datasets
from nrsrd_jax.data.lists import MAX_BYTES, MAX_LINE, read_lines
from nrsrd_jax.data.naming import JUNK, as_numbers, is_unknown
from nrsrd_jax.errors import InputError

TABLE = "path,pid,camera,split\nimg/a b.jpg,7,1,train\nimg/b.jpg,8,2,train\nimg/c.jpg,7,2,gallery\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "img").mkdir()
    for name in ("a b", "b", "c"):
        (tmp_path / f"img/{name}.jpg").touch()
    return tmp_path


def manifest(folder, content):
    (folder / "m.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    return datasets.read_dataset("manifest", folder / "m.csv")


@pytest.mark.parametrize(("old", "new"), [
    ("", ""), (",", ";"), (",", "\t"), ("path,pid,camera,split", "Path, PID ,CAMERA,  Split"),
    ("\n", "\r\n"), ("\n", "\r"),
    ("\nimg", "\n\n,,,\n  \nimg"), ("path,", "\n,,,\npath,"), ("img/", "img\\"), (",7,", ",7.0,"), (",7,", ",007,"),
    (",7,2", ",7.00,002"), (",7,2", ", +7 ,2.0"), ("train\nimg/b", "TRAIN\nimg/b"), ("a b.jpg,7", '"a b.jpg","7"'),
    ("camera,split", "camera,split,note"), ("2,train", "2,train,,,"), (",8,2,train", ", 8 , 2 , train "),
])  # fmt: skip
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_manifest_is_read_however_it_was_saved(folder, old, new, encoding):
    content = TABLE.replace(old, new) if old else TABLE
    # The quotes must enclose the whole cell.
    content = content.replace('img/"', '"img/').encode(encoding)
    data = manifest(folder, content)
    assert data.train.paths == (folder / "img/a b.jpg", folder / "img/b.jpg")
    assert data.gallery.paths == (folder / "img/c.jpg",)
    assert (data.train.pids.tolist(), data.gallery.pids.tolist()) == ([7, 8], [7])
    assert (data.train.cameras.tolist(), data.gallery.cameras.tolist()) == ([1, 2], [2])


@pytest.mark.parametrize(("content", "message"), [
    (TABLE.replace("b.jpg", "bä.jpg").encode("latin-1"), 
     r"line 2 is not UTF-8; .* saved as Latin-1 .*: save it as UTF-8"),
    (TABLE.encode("utf-16")[:-1], "is damaged UTF-16 text: save it as UTF-8"),
    ("file;who\n1;2\n", r'has no column path, pid, split in its first line "file;who"; it takes the columns path,pid'),
    ("path,pid,PID,split\n", "has the column pid twice"), (TABLE + "img/x,1.jpg,7,1,train\n", "line 5 has 5 cells"),
    (TABLE + "img/x.jpg,7,1,test\n", 'line 5: .*train, query or gallery, not "test"'),
    (TABLE + "img/x.jpg,7,,train\n", "line 5: .* is not a camera, but other rows have one"),
    (TABLE + "img/x.jpg,7,unknown,train\n", 'line 5: "unknown" is not a camera'),
    (TABLE + "img/x.jpg,7,-1,train\n", 'line 5: "-1" is not a camera'),
    (TABLE + "C:\\img\\x.jpg,7,1,train\n", "is a path on a Windows drive: write paths relative"),
    (TABLE + "img/x.jpg,1.23E+15,1,train\n", "line 5: a spreadsheet has rounded the pid"),
    (TABLE + f"{'x' * MAX_LINE}.jpg,1,1,train\n", f"line 5 has more than {MAX_LINE} characters"),
    (TABLE + '"img\n', "cannot read the manifest"), ("", "has no column"),
    (TABLE + "img/x.jpg\0,7,1,train\n", "line 5"), (TABLE + "img/x.jpg,7\n", "line 5: it needs a path"),
])  # fmt: skip
def test_an_invalid_manifest_is_refused_with_the_reason(folder, content, message):
    with pytest.raises(InputError, match=message) as refusal:
        manifest(folder, content)
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize("value", ["1,000", "1.000", "2,000", "+1.000", "\u200b1,000", "'1.000", '="1.000"'])
def test_a_number_that_may_be_in_thousands_is_refused(folder, value):
    for row in (f'img/b.jpg;"{value}";1;train', f"img/b.jpg;7;{value};train"):
        row = row.replace('"="1.000""', '="1.000"')
        with pytest.raises(InputError, match=r"line 5: the (pid|camera) .* may be in ones or in thousands"):
            manifest(folder, TABLE.replace(",", ";") + row + "\n")
    (folder / "train" / value).mkdir(parents=True)
    (folder / "train" / value / "c1.jpg").touch()
    with pytest.raises(InputError, match="in ones or in thousands"):
        datasets.read_dataset("folders", folder)


@pytest.mark.parametrize(
    "value", ["1E+12", "1e+12", "1.23457e+12", "1,23457E+12", "1.5e12", "-1E+12", "1.E+12", "'1E+12"]
)
@pytest.mark.parametrize("column", ["pid", "camera"])
def test_a_number_that_a_spreadsheet_has_rounded_is_refused(folder, value, column):
    row = f"img/b.jpg;{value};1;train" if column == "pid" else f"img/b.jpg;7;{value};train"
    if column == "camera" and value.startswith("-"):
        # A camera below 0 would be refused for its sign first.
        row = row.replace("-", "")
    with pytest.raises(InputError, match=f"line 5: a spreadsheet has rounded the {column}"):
        manifest(folder, TABLE.replace(",", ";") + row + "\n")


@pytest.mark.parametrize("seven", [
    "\u200b7", "7\ufeff", "\xa07\xa0", "\u20607\u202f", "'7", "'007", '="007"', '="7"', "=\"7\"\u200b", "7\xad",
    "'007'",
])  # fmt: skip
def test_invisible_characters_in_a_cell_make_no_new_identity(folder, seven):
    data = manifest(folder, TABLE.replace("c.jpg,7,2", f"c.jpg,{seven},{seven}").replace("2,train", "7,train"))
    assert (data.train.pids.tolist(), data.gallery.pids.tolist()) == ([7, 8], [7])
    assert (data.train.cameras.tolist(), data.gallery.cameras.tolist()) == ([1, 7], [7])
    assert is_unknown("\u200bunknown\xa0")
    one, same, two, also = as_numbers(["an\u200bna", "anna", "a\xa0b", "a b"])
    assert (one, two) == (same, also)
    assert one != two


def test_a_number_too_large_for_arrays_is_one_number_however_it_is_written():
    one, same, also, other = as_numbers(["1" + 18 * "0", "1" + 18 * "0" + ".0", "01" + 18 * "0", "7"])
    assert one == same == also != other


@pytest.mark.parametrize("first", ["sep=;", "SEP=;", '"sep=;"', "sep=;;;;", "\nsep=;"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_separator_line_of_excel_is_understood(folder, first, encoding):
    text = f"{first}\n{TABLE.replace(',', ';').replace('path;', 'a,b,c,d,e;path;').replace('img', ';img')}"
    assert manifest(folder, text.encode(encoding)).train.pids.tolist() == [7, 8]
    with pytest.raises(InputError, match=rf"line {5 + first.count(chr(10)) + 1}: .*not .test."):
        manifest(folder, text + ";img/b.jpg;7;1;test\n")


@pytest.mark.parametrize(
    "pid", ["unknown", "Unknown", "nan", "NaN", "none", "?", "??", "", " ", "-", "<NA>", "#N/A", "NA"]
)
@pytest.mark.parametrize("others", ["7,8", "anna,bert"])
def test_unknown_people_are_left_out_and_counted(folder, capsys, pid, others):
    one, two = others.split(",")
    text = (
        TABLE.replace(",7,", f",{one},").replace(",8,", f",{two},")
        + f"img/b.jpg,{pid},1,train\nimg/c.jpg,{pid},2,gallery\n"
    )
    data = manifest(folder, text)
    assert (len(data.train), len(data.train.identities), len(data.gallery)) == (2, 2, 1)
    assert "not read: 2 of unknown identity" in capsys.readouterr().out


def test_junk_is_left_out_and_counted_whether_identities_are_names_or_numbers(folder, capsys):
    for others in ("7", "anna"):
        data = manifest(folder, TABLE.replace(",7,", f",{others},") + "img/b.jpg,-1,1,train\nimg/c.jpg,-1.0,1,train\n")
        assert (len(data.train), JUNK in data.train.pids) == (2, False)
        assert "not read: 2 of identity -1 (junk)" in capsys.readouterr().out


def test_a_camera_column_without_cameras_is_reported(folder, capsys):
    data = manifest(folder, TABLE.replace(",1,train", ",,train").replace(",2,", ",nan,"))
    assert {*data.train.cameras.tolist(), *data.gallery.cameras.tolist()} == {0}
    assert "no row has a camera: every image has camera 0" in capsys.readouterr().out


def test_hidden_and_system_files_in_a_manifest_are_left_out(folder, capsys):
    manifest(folder, TABLE + "img/._b.jpg,7,1,train\n__MACOSX/b.jpg,7,1,train\n./img/../img/b.jpg,8,1,train\n")
    assert "not read: 2 hidden" in capsys.readouterr().out


def test_a_folder_instead_of_a_manifest_is_refused_and_its_manifests_are_named(folder):
    manifest(folder, TABLE)
    with pytest.raises(InputError, match=r"is not a file; a manifest is a CSV file \(m.csv\)"):
        datasets.read_dataset("manifest", folder)


def msmt17(root, text, encoding="utf-8"):
    for name in ("train", "test"):
        (root / name).mkdir(exist_ok=True)
    for part in ("train", "val", "query", "gallery"):
        (root / f"list_{part}.txt").write_bytes(text.encode(encoding))
    return datasets.read_dataset("msmt17", root)


@pytest.mark.parametrize("line", [
    "my data/0000/0000_000_012_0303 x.jpg 5", "my data/0000/0000_000_012_0303 x.jpg\t5  ",
    "my data\\0000\\0000_000_012_0303 x.jpg 5",
    "my data/0000/0000_000_012_0303 x.jpg,5", "  my data/0000/0000_000_012_0303 x.jpg   5",
])  # fmt: skip
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_lists_of_msmt17_are_read_however_they_were_saved(tmp_path, line, encoding):
    query = msmt17(tmp_path, f"\r\n{line}\r\n", encoding).query
    assert query.paths == (tmp_path / "test/my data/0000/0000_000_012_0303 x.jpg",)
    assert (query.pids.tolist(), query.cameras.tolist()) == ([5], [12])


@pytest.mark.parametrize("line", [
    "0000_000_01-2_0.jpg 5", "0000_000_01.5_0.jpg 5",
    "0000/0000_000_01x_0.jpg 5", "0000/0000_000_01_0.jpg", "0000_000_01_0.jpg unknown", "0000_000_01_0.jpg 5.5", "5",
    "a 5", "0000_01.jpg 5", "1" * 4000 + "_1_" + "1" * 4000 + " x", " " * 9000 + "x", "0_" * 4000 + " x",
])  # fmt: skip
def test_an_invalid_line_of_a_list_is_refused_within_a_second(tmp_path, line):
    # A regular expression that tries all ways to split these lines would take minutes.
    begin = time.perf_counter()
    with pytest.raises(InputError, match=r"list_train.txt, line 2: .* is not .path identity.") as refusal:
        msmt17(tmp_path, f"\n{line}\n")
    assert time.perf_counter() - begin < 1
    assert len(str(refusal.value)) < 400


def test_a_list_that_is_too_large_is_refused(tmp_path):
    path = tmp_path / "list.txt"
    path.touch()
    with path.open("r+b") as file:
        # The file is sparse, so it fills no disk.
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(InputError, match=f"more than {MAX_BYTES} bytes"):
        datasets.read_exclude(path)


@pytest.mark.parametrize("save", [
    lambda text: text.encode(), lambda text: codecs.BOM_UTF8 + text.encode(), lambda text: text.encode("utf-16"),
    lambda text: text.replace("\n", "\r\n").encode(), lambda text: text.replace("/", "\\").encode(),
    lambda text: "".join(f' "{line}" \n' for line in text.splitlines()).encode(),
])  # fmt: skip
def test_an_exclude_list_is_read_however_it_was_saved(folder, monkeypatch, save):
    monkeypatch.chdir(folder)
    (folder / "bad.txt").write_bytes(save("img/a b.jpg\n\nimg/c.jpg\n"))
    assert {path.as_posix() for path in datasets.read_exclude("bad.txt")} == {"img/a b.jpg", "img/c.jpg"}


def test_an_exclude_list_in_latin_1_is_refused_unless_its_bytes_name_existing_files(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "bad.txt").write_bytes("img/c.jpg\nimg/Größe.jpg\n".encode("latin-1"))
    with pytest.raises(InputError, match="is not UTF-8; the list is probably saved as Latin-1: save it as UTF-8"):
        datasets.read_exclude("bad.txt")
    with open("img/Größe.jpg".encode("latin-1"), "wb"):
        pass
    assert len(datasets.read_exclude("bad.txt")) == 2
    (folder / "bad.txt").write_bytes(b"img/c.jpg\nimg/\0.jpg\n")
    with pytest.raises(InputError, match="line 2 holds a NUL character"):
        datasets.read_exclude("bad.txt")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=9)), st.data())
def test_every_line_of_a_list_is_read_back_unchanged(tmp_path_factory, lines, data):
    """U+2028 and form feed do not end a line."""
    encoding, end = (
        data.draw(st.sampled_from(["utf-8-sig", "utf-16"])),
        data.draw(st.sampled_from(["\n", "\r\n", "\r"])),
    )
    path = tmp_path_factory.getbasetemp() / "lines.txt"
    path.write_bytes("".join(line + end for line in lines).encode(encoding))
    assert list(read_lines(path)) == list(enumerate(lines, start=1))


@given(st.lists(st.integers(-9, 99) | st.sampled_from(["anna", "bert", "1e3"]), min_size=1), st.data())
def test_spellings_of_a_number_are_one_identity_and_different_people_stay_apart(names, data):
    spelling = st.sampled_from(["{}", "{}.0", " {} ", "{}."])
    numbers = as_numbers([data.draw(spelling).format(name) if isinstance(name, int) else name for name in names])
    pairs = set(zip(names, numbers, strict=True))
    assert len(pairs) == len(set(names)) == len(set(numbers))
    assert all((name == JUNK) == (number == JUNK) for name, number in pairs)
