"""The files in deploy/ start nrsrd as it expects: variables, exit statuses and signals."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
# Each process writes its variables and arguments, and ends with a status of its own, or with 143 after SIGTERM.
NRSRD = """#!/bin/bash
trap 'exit 143' TERM
echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS: $*" > "$OUT/$JAX_PROCESS_ID"
[ -z "$WAIT" ] || while true; do sleep 0.05; done
exit $JAX_PROCESS_ID
"""


@pytest.fixture
def start(tmp_path):
    """start(WAIT="1") runs deploy/local.sh for three processes of a stand-in for nrsrd."""
    (tmp_path / "nrsrd").write_text(NRSRD)
    (tmp_path / "nrsrd").chmod(0o755)

    def run(**environment):
        variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "OUT": str(tmp_path), "WAIT": ""} | environment
        return subprocess.Popen(["bash", DEPLOY / "local.sh", "3", "--config", "night600"], env=variables)

    return run


def test_local_starts_numbered_processes_and_returns_the_largest_status(start, tmp_path):
    assert start().wait(20) == 2
    lines = [(tmp_path / str(i)).read_text() for i in range(3)]
    assert lines == [f"{i} of 3 at 127.0.0.1:4567: train --config night600\n" for i in range(3)]


def test_local_passes_sigterm_on_and_returns_the_status_of_a_saved_run(start, tmp_path):
    process = start(WAIT="1")
    deadline = time.monotonic() + 20
    while not all((tmp_path / str(i)).exists() for i in range(3)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143


@pytest.mark.parametrize("name", ["local.sh", "train.sbatch"])
def test_bash_can_parse_the_scripts(name):
    subprocess.run(["bash", "-n", DEPLOY / name], check=True)


def test_the_kubernetes_job_counts_processes_and_statuses_as_nrsrd_does():
    service, job = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    spec = job["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    variables = {each["name"]: each.get("value") for each in container["env"]}
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(variables["JAX_NUM_PROCESSES"])
    assert variables.keys() >= {"JAX_PROCESS_ID", "JAX_COORDINATOR_ADDRESS"}
    host, _, port = variables["JAX_COORDINATOR_ADDRESS"].partition(":")
    assert host == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert int(port) == service["spec"]["ports"][0]["port"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    rules = {rule["action"]: rule["onExitCodes"] for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule}
    assert {action: rule["values"] for action, rule in rules.items()} == {"Ignore": [143], "FailJob": [2]}
    assert all(rule["containerName"] == container["name"] for rule in rules.values())


def test_each_variable_of_jax_in_the_files_is_one_that_processes_reads():
    known = (ROOT / "nrsrd_jax/processes.py").read_text() + "JAX_NUM_CPU_DEVICES"
    for path in DEPLOY.iterdir():
        for name in re.findall(r"JAX_[A-Z_]+", path.read_text()):
            assert name in known, f"{name} in {path.name}"
