"""Commands side by side: each has its own GPUs, a failure does not stop the others, and a signal lets them save."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from nrsrd_jax.errors import InputError, Stopped
from nrsrd_jax.jobs import gpu_shares, run_jobs

pytestmark = pytest.mark.slow

# This program writes "ready" to a file, waits for SIGTERM, and exits with the status of a training that has saved.
SAVES = """
import pathlib, signal, sys, time
def save(*_):
    print("saved")
    pathlib.Path(sys.argv[1]).write_text("saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
pathlib.Path(sys.argv[1]).write_text("ready")
time.sleep(60)
"""


def python(code, *arguments):
    return [sys.executable, "-c", code, *map(str, arguments)]


def wait_until(holds):
    deadline = time.time() + 30
    while not holds():
        assert time.time() < deadline
        time.sleep(0.02)


def signals(places: list[Path], *numbers):
    """Send this process the signals, half a second apart, once every command has written "ready"."""

    def send():
        wait_until(lambda: all(place.exists() and place.read_text() == "ready" for place in places))
        for number in numbers:
            os.kill(os.getpid(), number)
            # Two equal signals are delivered as one if the second comes before the first is handled.
            time.sleep(0.5)

    threading.Thread(target=send, daemon=True).start()


def test_gpus_are_split_evenly():
    assert gpu_shares(["0", "1", "2", "3", "4"], 2) == [{"CUDA_VISIBLE_DEVICES": x} for x in ("0,1", "2,3")]
    assert gpu_shares(["GPU-a", "GPU-b"], 2) == [{"CUDA_VISIBLE_DEVICES": x} for x in ("GPU-a", "GPU-b")]
    three = gpu_shares(["0", "1"], 3)
    assert [each["CUDA_VISIBLE_DEVICES"] for each in three] == ["0", "1", "0"]
    # Two processes share a GPU, of whose memory a tenth is left to CUDA.
    assert {each["XLA_PYTHON_CLIENT_MEM_FRACTION"] for each in three} == {"0.450"}


def test_each_command_has_its_own_share_and_its_output_lines_begin_with_its_name(capsys, monkeypatch):
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    tell = "import os; print(os.environ['SHARE'], os.environ.get('JOB_COMPLETION_INDEX'))"
    done = []
    run_jobs({name: python(tell) for name in "abcd"}, [{"SHARE": "x"}, {"SHARE": "y"}], done.append)
    assert sorted(done) == ["a", "b", "c", "d"]
    lines = capsys.readouterr().out.splitlines()
    assert {"1/4: a", "4/4: d", "a: x None", "b: y None"} <= set(lines)
    assert sum(line.endswith((" x None", " y None")) for line in lines) == 4


def test_a_failure_is_reported_with_its_command_and_the_others_run(capsys):
    fails = "import sys; print('error: no such data', file=sys.stderr); sys.exit(2)"
    commands = {"bad": python(fails), "worse": python("import sys; sys.exit(7)"), "good": python("print('done')")}
    done = []
    with pytest.raises(InputError) as error:
        run_jobs(commands, [{}], done.append)
    assert str(error.value) == (
        "2 of 3 trainings failed (bad: no such data; worse: it ended with status 7); the same command tries them again"
    )
    assert done == ["good"]
    assert "bad: error: no such data" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGTERM, Stopped), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_lets_every_command_save_and_no_further_command_starts(tmp_path, number, raised):
    places = [tmp_path / "a", tmp_path / "b"]
    commands = {place.name: python(SAVES, place) for place in places} | {"later": python(SAVES, tmp_path / "later")}
    signals(places, number)
    with pytest.raises(raised) as stopped:
        run_jobs(commands, [{}, {}], pytest.fail, preempted_status=99)
    if raised is Stopped:
        assert stopped.value.status == 99
        assert "the same command continues" in str(stopped.value)
    assert [place.read_text() for place in places] == ["saved", "saved"]
    assert not (tmp_path / "later").exists()


def test_a_second_ctrl_c_stops_commands_at_once(tmp_path):
    stubborn = SAVES.replace("    print(", "    return\n    print(")
    signals([tmp_path / "a"], signal.SIGINT, signal.SIGINT)
    begin = time.time()
    with pytest.raises(KeyboardInterrupt):
        run_jobs({"a": python(stubborn, tmp_path / "a")}, [{}], pytest.fail)
    assert time.time() - begin < 30
    assert (tmp_path / "a").read_text() == "ready"


def test_running_commands_are_stopped_if_recording_a_result_fails(tmp_path):
    def finished(name):
        wait_until((tmp_path / "a").exists)
        raise InputError("no space")

    with pytest.raises(InputError, match="no space"):
        run_jobs({"quick": python("pass"), "a": python(SAVES, tmp_path / "a")}, [{}, {}], finished)
    assert (tmp_path / "a").read_text() == "saved"
