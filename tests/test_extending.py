"""Every diff of docs/extending.md applies, its addition works, and it changes as many files as the page says."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import COMPILED
from people import ROOT

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
SECTIONS = dict(section.split("\n", 1) for section in PAGE.split("\n## ")[1:])
DIFFS = {
    title: diff for title, text in SECTIONS.items() for diff in re.findall(r"^```diff\n(.*?)^```$", text, re.M | re.S)
}
COUNTS = SECTIONS["How many files"]


def apply(diff: str, folder: Path, *options: str) -> None:
    # If a folder above were a repository, git would skip the files of the copy and still report success.
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(folder.parent)}
    done = subprocess.run(
        ["git", "apply", "--verbose", *options], input=diff.encode(), cwd=folder, env=environment, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("title", DIFFS)
def test_a_diff_of_the_page_applies_to_this_code(title):
    apply(DIFFS[title], ROOT, "--check")


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    """Apply all diffs to a copy of the code, and return {title: what failed there, "" if nothing did}."""
    place = tmp_path_factory.mktemp("extending")
    copy = place / "copy"
    for name in ("nrsrd_jax", "configs", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "golden"))
    for diff in DIFFS.values():
        apply(diff, copy)
    done = subprocess.run(
        [sys.executable, copy / "tests/extended.py", place, COMPILED],
        env=os.environ | {"PYTHONPATH": str(copy)}, cwd=place, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("title", DIFFS)
def test_what_a_diff_of_the_page_adds_works(title, failures):
    assert not failures[title], failures[title]


def test_the_page_counts_the_files_that_each_diff_changes():
    rows = re.findall(r"^\| (.+?) \| .+? \| (\d)", COUNTS, re.M)
    counted = {title.split(":")[0]: int(count) for title, count in rows}
    assert counted == {title: len(re.findall(r"^--- a/", diff, re.M)) for title, diff in DIFFS.items()}
    assert max(counted.values()) <= 2
