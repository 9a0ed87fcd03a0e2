"""Run the commands of docs/own-crops.md in the order of the page."""

import contextlib
import importlib
import io
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from people import ROOT

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs/own-crops.md").read_text()
BLOCKS = "".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = re.findall(r"^nrsrd .*$", BLOCKS, re.MULTILINE)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Run the page's commands in a folder with the demo's data. Return the folder and {command: its output}."""
    place = tmp_path_factory.mktemp("own")
    (place / "demo").symlink_to(ROOT / "demo")
    shown = {}
    # Run all commands in this process, because a new one takes seconds to import LanceDB.
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for command in COMMANDS:
            patch.setattr(sys, "argv", shlex.split(command)[1:])
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                importlib.import_module(f"nrsrd_jax.{sys.argv[0]}").main()
            shown[command] = printed.getvalue()
    return place, shown


def test_every_command_of_the_page_runs(outputs):
    place, shown = outputs
    # Other commands would not run.
    assert BLOCKS.splitlines() == COMMANDS
    assert len(shown) >= 10
    last = {command.split()[1]: text.splitlines()[-1] for command, text in shown.items()}
    assert last["forget"].endswith("are left")
    assert (place / "matches.html").stat().st_size > 100_000


def test_a_search_without_labels_finds_most_people(outputs):
    """Compare with the identities in the file names, which the search does not use."""
    place, _ = outputs
    queries = json.loads((place / "matches.json").read_text())["queries"]
    assert len(queries) == 80
    first = [Path(query["matches"][0]["path"]).name[:4] == Path(query["path"]).name[:4] for query in queries]
    assert sum(first) > 40
