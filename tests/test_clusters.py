"""Test that the files in deploy/ pass options and variables that nrsrd understands, and handle its exit status.

tests/test_processes.py trains with the variables of deploy/kubernetes.yaml.
"""

import os
import re
import signal
import subprocess
import time

import pytest
from people import ROOT
from pods import MANIFEST, read_manifest

from nrsrd_jax import processes
from nrsrd_jax.command import read_config, split_config_arguments
from nrsrd_jax.options import read_options

LOCAL, SBATCH = ROOT / "deploy/local.sh", ROOT / "deploy/train.sbatch"
# A program in place of nrsrd: it records its arguments and variables, and exits with 143 after SIGTERM or with $STATUS.
NRSRD = """#!/bin/bash
trap 'exit 143' TERM
echo "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID $*" >> calls
if [ -n "$STATUS" ]; then exit "$STATUS"; fi
for ((i = 0; i < 400; i++)); do sleep 0.05; done
"""
# As SLURM does, this srun starts a command and passes SIGTERM on.
SRUN = """#!/bin/bash
"$@" & child=$!
trap 'kill -TERM $child' TERM
wait $child; status=$?
while kill -0 $child 2>/dev/null; do wait $child; status=$?; done
exit $status
"""
SCONTROL = '#!/bin/bash\necho "$*" >> requeued\n'


@pytest.fixture
def start(tmp_path):
    """start(script, …, STATUS="2") -> a process, in a folder with stand-ins for nrsrd and for SLURM's commands."""
    for name, text in {"nrsrd": NRSRD, "srun": SRUN, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def call(*command, **variables):
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "SLURM_"))}
        path = {"PATH": f"{tmp_path}:{kept['PATH']}"}
        return subprocess.Popen(["bash", *map(str, command)], cwd=tmp_path, env=kept | path | variables)

    return call


def wait_for_calls(folder, count):
    deadline = time.time() + 20
    while not (folder / "calls").exists() or len((folder / "calls").read_text().splitlines()) < count:
        assert time.time() < deadline
        time.sleep(0.02)


# ml_collections loads a config file with the deprecated load_module.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize("script", [LOCAL, SBATCH, MANIFEST], ids=lambda path: path.name)
def test_nrsrd_understands_each_option(script):
    if script == MANIFEST:
        (container,) = read_manifest()[1]["spec"]["template"]["spec"]["containers"]
        command = [*container["command"], *container["args"]]
    else:
        (line,) = re.findall(rf"^#   .*?{script.name} (?:COUNT )?(.+)$", script.read_text(), re.MULTILINE)
        command = ["nrsrd", "train", *line.split()]
        assert 'nrsrd train "$@"' in script.read_text()
    assert command[:2] == ["nrsrd", "train"]
    ours, rest = split_config_arguments(command[2:])
    read_options(read_config(ours))
    assert re.fullmatch(r"--workdir[= ]\S+", " ".join(rest))


def test_local_sh_numbers_the_processes_and_gives_them_one_address(start, tmp_path):
    assert start(LOCAL, 2, "--config", "demo", STATUS="0").wait() == 0
    calls = sorted((tmp_path / "calls").read_text().splitlines())
    assert calls == [f"127.0.0.1:4567 2 {process} train --config demo" for process in (0, 1)]


@pytest.mark.parametrize("status", [2, 143])
def test_local_sh_fails_as_the_processes_do(start, status):
    assert start(LOCAL, 2, "--config", "demo", STATUS=str(status)).wait() == status


def test_local_sh_lets_all_processes_save_after_sigterm(start, tmp_path):
    process = start(LOCAL, 2, "--config", "demo")
    wait_for_calls(tmp_path, 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 143


def test_a_preempted_slurm_job_is_queued_again_and_other_ends_are_not(start, tmp_path):
    process = start(SBATCH, "--config", "demo", SLURM_JOB_ID="7")
    wait_for_calls(tmp_path, 1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 143
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    for status in (0, 2):
        assert start(SBATCH, "--config", "demo", SLURM_JOB_ID="7", STATUS=str(status)).wait() == status
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"


def test_slurm_signals_the_script_in_time_and_may_queue_the_job_again():
    options = re.findall(r"^#SBATCH --(\S+)$", SBATCH.read_text(), re.MULTILINE)
    given = dict(option.partition("=")[::2] for option in options)
    assert {"requeue", "open-mode", "time"} <= given.keys()
    assert given["signal"] == "B:TERM@120"
    # A log that is overwritten would lose the part before the preemption.
    assert given["open-mode"] == "append"


def test_the_job_repeats_preemptions_and_not_mistakes():
    _, job = read_manifest()
    assert (job["apiVersion"], job["kind"], job["spec"]["completionMode"]) == ("batch/v1", "Job", "Indexed")
    pod = job["spec"]["template"]["spec"]
    # Kubernetes accepts a podFailurePolicy with this restart policy alone.
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    rules = job["spec"]["podFailurePolicy"]["rules"]
    by_status = {
        status: rule["action"]
        for rule in rules
        if "onExitCodes" in rule
        for status in rule["onExitCodes"]["values"]
        if rule["onExitCodes"]["containerName"] == container["name"] and rule["onExitCodes"]["operator"] == "In"
    }
    assert by_status == {143: "Ignore", 2: "FailJob"}
    assert [rule["action"] for rule in rules if rule.get("onPodConditions") == [{"type": "DisruptionTarget"}]] == [
        "Ignore"
    ]
    # Before the first step the processes compile, train a step and save after SIGTERM.
    assert pod["terminationGracePeriodSeconds"] >= processes.PATIENCE


def test_the_pods_find_the_first_of_them_by_the_name_that_the_service_resolves():
    service, job = read_manifest()
    name, spec = job["metadata"]["name"], job["spec"]
    pod = spec["template"]["spec"]
    variables = {each["name"]: each.get("value") for each in pod["containers"][0]["env"]}
    port = service["spec"]["ports"][0]["port"]
    assert variables["JAX_COORDINATOR_ADDRESS"] == f"{name}-0.{service['metadata']['name']}:{port}"
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert spec["completions"] == spec["parallelism"] == int(variables["JAX_NUM_PROCESSES"])


def test_the_pods_write_to_the_shared_disk_only_and_are_not_root():
    pod = read_manifest()[1]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    paths = [value for argument in container["args"] for value in re.findall(r"=(/\S+)", argument)]
    assert len(paths) == 3
    assert all(path.startswith(f"{mounts[0]}/") for path in paths)
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    user = re.search(r"--uid (\d+)", (ROOT / "Dockerfile").read_text())
    assert user is not None
    assert pod["securityContext"] | {"runAsNonRoot": True, "runAsUser": int(user[1])} == pod["securityContext"]


def test_the_image_gets_the_files_that_the_wheel_is_built_from():
    """The Dockerfile copies files that .dockerignore lets through, and runs as another user than root."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [
        name for line in lines if line.startswith("COPY ") and "--from" not in line for name in line.split()[1:-1]
    ]
    assert all((ROOT / name).exists() for name in copied)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == set(copied)
    assert {"USER 1000", 'ENTRYPOINT ["nrsrd"]'} <= set(lines)
