"""`make demo` prints a line per stage, and its logs have everything else."""

import re
import signal
import time

import pytest
from people import run, start

pytestmark = pytest.mark.slow

LINE = r"teacher +\d+ s   log: runs/demo-teacher\.log\n"


def log(folder):
    return (folder / "runs/demo-teacher.log").read_text()


def test_a_stage_prints_one_line_with_its_seconds_and_the_log_has_the_rest(tmp_path):
    code = "import sys; print('epoch 1'); print('a warning', file=sys.stderr)"
    done = run("demo/stage.py", "teacher", "-c", code, cwd=tmp_path)
    assert re.fullmatch(LINE, done.stdout)
    assert not done.stderr
    # The script buffers its stdout, so its two streams may come in either order.
    assert sorted(log(tmp_path).splitlines()) == ["a warning", "epoch 1"]


def test_a_failed_stage_keeps_its_status_and_shows_the_end_of_this_log(tmp_path):
    # A stage appends to its log, and a failure must show the lines of its own call.
    run("demo/stage.py", "teacher", "-c", "print('an earlier call')", cwd=tmp_path)
    code = "import sys; [print('line', i) for i in range(40)]; sys.exit('error: no such folder')"
    done = run("demo/stage.py", "teacher", "-c", code, cwd=tmp_path, status=1)
    assert re.fullmatch(LINE, done.stdout)
    *tail, last = done.stderr.splitlines()
    assert len(tail) == 15
    assert "line 39" in tail
    assert "error: no such folder" in tail
    assert last == "error: teacher failed with status 1; its whole output is in runs/demo-teacher.log"
    assert "line 0\n" in log(tmp_path)
    short = run("demo/stage.py", "teacher", "-c", "import sys; sys.exit(7)", cwd=tmp_path, status=7)
    assert len(short.stderr.splitlines()) == 1


def test_a_shown_stage_ends_with_its_own_last_line(tmp_path):
    code = "import sys; print('table'); print('a detail', file=sys.stderr); print('nrsrd mAP 0.369 Rank-1 0.388')"
    done = run("demo/stage.py", "--show", "teacher", "-c", code, cwd=tmp_path)
    assert re.fullmatch(LINE + "table\nnrsrd mAP 0.369 Rank-1 0.388\n", done.stdout)
    assert log(tmp_path) == "a detail\ntable\nnrsrd mAP 0.369 Rank-1 0.388\n"


def test_a_signal_reaches_the_script_of_a_stage(tmp_path):
    code = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit("saved"))
print("ready", flush=True)
time.sleep(60)
"""
    process = start(["demo/stage.py", "teacher", "-c", code], tmp_path)
    begin = time.monotonic()
    while not (tmp_path / "runs/demo-teacher.log").exists() or "ready" not in log(tmp_path):
        assert time.monotonic() - begin < 30
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    # sys.exit with a text prints it to stderr and ends with status 1.
    assert process.wait(30) == 1
    assert log(tmp_path) == "ready\nsaved\n"
