"""Test that two processes with two devices each, joined over loopback, train like one process with four devices."""

import contextlib
import re
import shutil
import signal
import socket
import time

import jax
import numpy as np
import people
import pytest
from people import small_config, train_command
from pods import pod_variables

from nrsrd_jax import processes, runs
from nrsrd_jax.errors import InputError
from nrsrd_jax.metrics_log import read_metrics
from nrsrd_jax.training import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alone(place):
    """Train for three epochs in one process with four devices."""
    train_alone(place, place / "alone")
    return place / "alone"


def train_alone(place, workdir):
    train(small_config(place, train__epochs=3), workdir, jax.devices()[:4])


def start(place, workdir, process, port, **options):
    # Each process has its own home folder, as on machines that share only the work directory.
    home = str(workdir.with_name(f"home-{process}"))
    environment = {"JAX_NUM_CPU_DEVICES": "2", "HOME": home} | pod_variables(process, port)
    command = train_command(small_config(place, **options), workdir)
    return people.start(command, log=workdir.with_name(f"{workdir.name}-{process}.log"), **environment)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def pair(place, workdir, *options):
    """Start two processes with two devices each. Give one set of options for both, or one for each."""
    port = free_port()
    processes = [start(place, workdir, process, port, **options[process % len(options)]) for process in (0, 1)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def wait_for_steps(workdir, processes):
    deadline = time.time() + 200
    while not read_metrics(workdir):
        assert all(process.poll() is None for process in processes)
        assert time.time() < deadline
        time.sleep(0.05)


def test_two_processes_give_the_losses_of_one(place, alone, tmp_path):
    """Check too that only the first process prints and logs scores."""
    with pair(place, tmp_path / "two", {"train__epochs": 3}) as processes:
        assert [process.wait(timeout=250) for process in processes] == [0, 0]
    one, two = read_metrics(alone), read_metrics(tmp_path / "two")
    assert [(line["step"], "mAP" in line) for line in one] == [(line["step"], "mAP" in line) for line in two]
    for name in ("loss", "mAP"):
        curves = [[line[name] for line in log if name in line] for log in (one, two)]
        # Sums over two processes are added in another order.
        np.testing.assert_allclose(curves[0], curves[1], rtol=1e-4)
    said = [(tmp_path / f"two-{process}.log").read_text() for process in (0, 1)]
    assert "done: mAP" in said[0]
    assert "mAP" not in said[1]


def test_processes_with_different_options_stop_at_once(place, tmp_path):
    with pair(place, tmp_path / "run", {"train__epochs": 3}, {"train__epochs": 4}) as processes:
        assert [process.wait(timeout=150) for process in processes] == [2, 2]
    assert "the processes differ in their options" in (tmp_path / "run-0.log").read_text()


def test_an_error_in_one_process_stops_both(place, tmp_path):
    with pair(place, tmp_path / "run", {}, {"data__root": "/nowhere"}) as processes:
        assert [process.wait(timeout=60) for process in processes] == [2, 2]
    said = [(tmp_path / f"run-{process}.log").read_text().splitlines()[-1] for process in (0, 1)]
    assert said[0] == "error: another process has failed; its own message says why"
    assert said[1].startswith("error: ")
    assert "/nowhere" in said[1]


def test_a_checkpoint_that_one_machine_lacks_stops_both_processes(place, model, tmp_path):
    shutil.copytree(model, tmp_path / "home-0/model")
    with pair(place, tmp_path / "run", {"init__checkpoint": "~/model"}) as processes:
        assert [process.wait(timeout=60) for process in processes] == [2, 2]
    said = [(tmp_path / f"run-{process}.log").read_text().splitlines()[-1] for process in (0, 1)]
    assert said[0] == "error: another process has failed; its own message says why"
    assert "does not exist" in said[1]


JOIN = """
import sys
from nrsrd_jax import processes
from nrsrd_jax.command import one_line
processes.PATIENCE = 3
one_line(processes.join)
print("joined", processes.is_first(), file=sys.stderr)
"""


def join(process, count, port, address="127.0.0.1"):
    environment = {"JAX_COORDINATOR_ADDRESS": f"{address}:{port}", "JAX_NUM_PROCESSES": str(count)}
    return people.start(["-c", JOIN], JAX_PROCESS_ID=str(process), **environment)


def test_a_process_stops_if_the_other_one_does_not_start():
    """Check the line that says what the process waits for. JAX then aborts, as docs/reliability.md shows."""
    port = free_port()
    first = join(0, 2, port)
    _, said = first.communicate(timeout=60)
    assert said.splitlines()[0] == (
        f"waiting for 2 processes at 127.0.0.1:{port} (JAX_COORDINATOR_ADDRESS), at most 3 s; after that JAX aborts "
        "(docs/reliability.md)"
    )
    assert "DEADLINE_EXCEEDED" in said
    assert first.returncode == -signal.SIGABRT


def test_a_port_in_use_is_refused():
    with socket.create_server(("", 0)) as server:
        first = join(0, 2, server.getsockname()[1])
        _, said = first.communicate(timeout=60)
    assert re.fullmatch(
        r"error: cannot listen on port \d+ of .*: Address already in use; name another port\n",
        said,
    )
    assert first.returncode == 2


@pytest.mark.parametrize(
    ("address", "count", "process"),
    [("host", "2", "0"), ("host:99999", "2", "0"), ("host:1", "2", "2"), ("host:1", "", "0"), ("host:1", "2", "-1")],
)
def test_an_invalid_address_is_refused_at_once(monkeypatch, address, count, process):
    values = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": count, "JAX_PROCESS_ID": process}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="give host:port of the first process"):
        processes.join()


@pytest.mark.long
def test_a_run_can_move_from_one_process_to_two_and_back(place, alone, tmp_path):
    """Train in one process, resume in two from a damaged newest checkpoint, then in one. The losses stay the same."""
    moved = tmp_path / "moved"
    shutil.copytree(alone, moved)
    first, *_, last = runs.saved_steps(moved)
    shutil.rmtree(moved / f"checkpoints/{last}/optimizer")
    with pair(place, moved, {"train__epochs": 3}) as processes:
        assert [process.wait(timeout=200) for process in processes] == [0, 0]
    assert (moved / f"checkpoints/damaged-{last}").is_dir()
    for step in runs.saved_steps(moved):
        if step != first:
            shutil.rmtree(moved / f"checkpoints/{step}")
    train_alone(place, moved)
    curves = [[line["loss"] for line in read_metrics(run) if "loss" in line] for run in (alone, moved)]
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-3)


@pytest.mark.long
def test_a_signal_makes_both_processes_save_the_same_step(place, tmp_path):
    # The run is far from its end when the signal comes.
    with pair(place, tmp_path / "run", {"train__epochs": 2000}) as processes:
        wait_for_steps(tmp_path / "run", processes)
        for process in processes:
            process.send_signal(signal.SIGTERM)
        assert [process.wait(timeout=100) for process in processes] == [143, 143]
    said = (tmp_path / "run-0.log").read_text()
    step = max(runs.saved_steps(tmp_path / "run"))
    assert f"stopped after step {step} of" in said
    # Resume the run, and send the signal while the processes compile.
    with pair(place, tmp_path / "run", {"train__epochs": 2000}) as processes:
        deadline = time.time() + 100
        while "compiling" not in (tmp_path / "run-0.log").read_text():
            assert time.time() < deadline
            time.sleep(0.05)
        for process in processes:
            process.send_signal(signal.SIGTERM)
        assert [process.wait(timeout=100) for process in processes] == [143, 143]
    # The signal takes effect after the first step that both processes take.
    assert max(runs.saved_steps(tmp_path / "run")) == step + 1


@pytest.mark.long
def test_if_one_process_is_killed_the_other_one_stops(place, tmp_path):
    with pair(place, tmp_path / "run", {"train__epochs": 2000}) as processes:
        wait_for_steps(tmp_path / "run", processes)
        processes[1].kill()
        assert processes[0].wait(timeout=100) != 0
    # JAX may abort the process with its own message.
    assert "error" in (tmp_path / "run-0.log").read_text().lower()
