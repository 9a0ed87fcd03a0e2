"""Files are not written through links that the user did not name, and foreign text cannot control the terminal."""

import contextlib
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrsrd_jax.errors import InputError, printable, say
from nrsrd_jax.files import append_open, locked_open, read_bounded, write_csv, write_whole, written_whole


@pytest.fixture
def victim(tmp_path):
    path = tmp_path / "victim"
    path.write_text("precious")
    yield path
    assert path.read_text() == "precious"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.mark.parametrize("write", [lambda path: write_whole(path, "new"), locked_open, append_open])
@pytest.mark.parametrize("target", ["victim", "nothing", "/"])
def test_a_link_in_a_folder_is_not_followed(folder, victim, write, target):
    (folder / "name").symlink_to(victim.parent / target)
    with pytest.raises(InputError, match=r"cannot write .*name: it is a symbolic link"):
        write(folder / "name")
    assert (folder / "name").is_symlink()
    assert not (victim.parent / "nothing").exists()


@pytest.mark.parametrize("write", [locked_open, append_open])
# Only the number of its names distinguishes a hard link from an ordinary file.
def test_a_hard_link_to_another_file_is_not_written_to(folder, victim, write):
    os.link(victim, folder / "name")
    with pytest.raises(InputError, match="not a regular file with one name"):
        write(folder / "name")


@pytest.mark.parametrize("write", [lambda path: write_whole(path, "new"), locked_open, append_open])
def test_a_named_pipe_is_refused_without_waiting(folder, write):
    os.mkfifo(folder / "name")
    with pytest.raises((InputError, OSError)):
        write(folder / "name")


def test_a_link_that_the_user_named_is_followed_and_stays(folder):
    (folder / "name").symlink_to(folder / "target")
    write_whole(folder / "name", "new", follow=True)
    assert (folder / "name").is_symlink()
    assert (folder / "target").read_text() == "new"


def test_a_failed_write_leaves_the_old_file_and_no_other(folder):
    write_whole(folder / "name", "old")
    # Ctrl-C is not an Exception, so code that cleans up after exceptions alone would leave the partial file.
    with contextlib.suppress(KeyboardInterrupt), written_whole(folder / "name") as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert [path.name for path in folder.iterdir()] == ["name"]
    assert (folder / "name").read_text() == "old"


def test_the_names_of_partial_files_cannot_be_predicted(folder):
    names = set()
    for _ in range(3):
        with written_whole(folder / "name") as partial:
            names.add(partial.name)
    assert len(names) == 3
    assert "name" not in names
    assert stat.S_IMODE((folder / "name").stat().st_mode) & 0o600 == 0o600


def test_a_file_that_is_too_large_or_not_regular_is_not_read(folder):
    (folder / "name").write_bytes(bytes(11))
    assert len(read_bounded(folder / "name", 11)) == 11
    with pytest.raises(InputError, match="more than 10 bytes"):
        read_bounded(folder / "name", 10)
    os.mkfifo(folder / "pipe")
    for odd in ("pipe", "."):
        with pytest.raises((InputError, OSError)):
            read_bounded(folder / odd, 10)


@given(st.text())
def test_any_name_is_printed_as_one_line_without_control_characters(text):
    shown = printable(text)
    assert shown.isprintable()
    assert shown.count("\n") == 0


def test_a_name_cannot_forge_a_line_of_output(capsys):
    # U+202E reverses the direction of the text behind it, which can disguise a name.
    say("wrong: a\nerror: all is lost\x1b[31m\u202e", "next")
    assert capsys.readouterr().out.splitlines() == [r"wrong: a\nerror: all is lost\x1b[31m\u202e", "next"]
    say("bad", error=True)
    assert capsys.readouterr().err == "bad\n"


def test_a_spreadsheet_sees_no_formula_in_a_written_table(folder):
    write_csv(folder / "t.csv", [{"=name": "=HYPERLINK(1)", "n": -1.5, "text": "-0.25", "at": "@SUM(1)", "ok": "a=b"}])
    assert (folder / "t.csv").read_text().splitlines() == [
        "'=name,n,text,at,ok",
        "'=HYPERLINK(1),-1.5,-0.25,'@SUM(1),a=b",
    ]
