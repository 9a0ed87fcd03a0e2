"""Two processes of two devices each, joined over loopback, are as one process with four."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from people import small_config, write_night

from nrsrd_jax import checkpoint
from nrsrd_jax import config as configuration

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write_night(tmp_path_factory.mktemp("place") / "night").parent


def start(place, workdir, devices, epochs, process=None, port=0):
    given = configuration.flatten(small_config(place, train__epochs=epochs, train__save_every=1, model__depth=1))
    default = configuration.flatten(configuration.get_config("baseline"))
    changed = [f"--config.{name}={value}" for name, value in given.items() if value != default[name]]
    command = [sys.executable, "train.py", "--config", "configs/night600.py:baseline", *changed, "--workdir", workdir]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    if process is not None:
        environment |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2",
                        "JAX_PROCESS_ID": str(process)}  # fmt: skip
    log = workdir.with_name(f"{workdir.name}-{process}.log").open("w")
    with log:
        return subprocess.Popen([str(part) for part in command], cwd=ROOT, env=environment, stdout=log, stderr=log)


@contextlib.contextmanager
def pair(place, workdir, epochs):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    each = epochs if isinstance(epochs, tuple) else (epochs, epochs)
    processes = [start(place, workdir, 2, each[process], process, port) for process in (0, 1)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def wait_for_steps(workdir, processes):
    deadline = time.time() + 200
    while not (workdir / "metrics.jsonl").exists() or not lines(workdir):
        assert all(process.poll() is None for process in processes)
        assert time.time() < deadline
        time.sleep(0.05)


def test_two_processes_give_the_losses_of_one(place, tmp_path):
    """One of them logs and writes; both compute."""
    alone = start(place, tmp_path / "alone", 4, epochs=3)
    with pair(place, tmp_path / "two", epochs=3) as processes:
        assert [process.wait(timeout=250) for process in processes] == [0, 0]
    assert alone.wait(timeout=200) == 0
    one, two = lines(tmp_path / "alone"), lines(tmp_path / "two")
    assert [(line["step"], "mAP" in line) for line in one] == [(line["step"], "mAP" in line) for line in two]
    for name in ("loss", "mAP"):
        curves = [[line[name] for line in log if name in line] for log in (one, two)]
        np.testing.assert_allclose(curves[0], curves[1], rtol=1e-4)
    said = [(tmp_path / f"two-{process}.log").read_text() for process in (0, 1)]
    assert "done: mAP" in said[0]
    assert "mAP" not in said[1]


def test_processes_that_were_told_different_things_end_at_once(place, tmp_path):
    with pair(place, tmp_path / "run", epochs=(3, 4)) as processes:
        assert [process.wait(timeout=150) for process in processes] == [2, 2]
    assert "the processes were given different options" in (tmp_path / "run-0.log").read_text()


def test_told_to_end_both_save_the_same_step(place, tmp_path):
    with pair(place, tmp_path / "run", epochs=2000) as processes:
        wait_for_steps(tmp_path / "run", processes)
        for process in processes:
            process.send_signal(signal.SIGTERM)
        assert [process.wait(timeout=100) for process in processes] == [0, 0]
    said = (tmp_path / "run-0.log").read_text()
    step = max(checkpoint.saved_steps(tmp_path / "run"))
    assert f"stopped after step {step} of" in said


def test_when_one_dies_the_other_does_not_hang(place, tmp_path):
    with pair(place, tmp_path / "run", epochs=2000) as processes:
        wait_for_steps(tmp_path / "run", processes)
        processes[1].kill()
        assert processes[0].wait(timeout=100) != 0
    assert "error" in (tmp_path / "run-0.log").read_text().lower()
