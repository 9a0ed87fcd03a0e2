"""Test that signals, damage, a full disk and a second process lose no checkpoint, and that messages say what to do."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import people
import pytest
from people import small_config, train_command

from nrsrd_jax import checkpoint, compiled, loop, runs
from nrsrd_jax import config as configuration
from nrsrd_jax.errors import InputError, Stopped
from nrsrd_jax.runs import owned
from nrsrd_jax.sharding import make_mesh
from nrsrd_jax.termination import Termination
from nrsrd_jax.training import train

pytestmark = pytest.mark.slow


def weights(run, step=None):
    return checkpoint.load(run / "checkpoints" / str(step or max(runs.saved_steps(run))), make_mesh())[1]


def test_a_signal_saves_and_says_how_to_continue(place, finished, tmp_path, capsys):
    """Send SIGTERM during an epoch. The same command then continues to the weights of an uninterrupted run."""
    # No epoch before the last saves a checkpoint, so only the signal can.
    config = small_config(place, train__epochs=6, train__save_every=100)
    ended = people.start(train_command(config, tmp_path / "ended"))
    log, deadline = tmp_path / "ended/metrics.jsonl", time.time() + 200
    while not log.exists() or log.read_text().count("loss") < 3:
        assert ended.poll() is None, ended.communicate()
        assert time.time() < deadline
        # A step takes milliseconds, and the signal must come before the last one.
        time.sleep(0.005)
    ended.send_signal(signal.SIGTERM)
    output, errors = ended.communicate(timeout=200)
    # A scheduler would take status 0 for a finished job.
    assert ended.returncode == 143, errors
    last = output.splitlines()[-1]
    assert "saved; the same command continues from there" in last
    step = int(last.split("after step ")[1].split()[0])
    assert runs.saved_steps(tmp_path / "ended") == [step]
    train(config, tmp_path / "ended", jax.devices()[:1])
    assert f"resuming {tmp_path / 'ended'} after step {step}" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, weights(tmp_path / "ended"), weights(finished))


def test_a_signal_before_the_first_step_stops_at_once_and_a_later_one_after_the_step():
    with Termination(99), pytest.raises(Stopped, match="the same command continues from there") as stopped:
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.status == 99
    with Termination() as termination:
        assert not termination.told()
        os.kill(os.getpid(), signal.SIGTERM)
        assert termination.told()


def end_a_row(number):
    with Termination() as row:
        row.told()
        signal.raise_signal(number)


def test_ctrl_c_saves_and_a_second_ctrl_c_stops_at_once(place, tmp_path, monkeypatch):
    with Termination(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    with Termination() as swallowed:
        # Python swallows the exception if it comes in a callback of the garbage collector.
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert swallowed.told()
    with Termination() as termination:
        assert not termination.told()
        signal.raise_signal(signal.SIGINT)
        assert termination.told()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    # A signal in the last step of an ablation's row must still stop the ablation.
    for number, ends in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Stopped)):
        with Termination(), pytest.raises(ends):
            end_a_row(number)

    told, asked = Termination.told, []

    def after_the_second_step(termination):
        asked.append(termination)
        if len(asked) == 2:
            signal.raise_signal(signal.SIGINT)
        return told(termination)

    monkeypatch.setattr(Termination, "told", after_the_second_step)
    # Runs of as many epochs as `finished` share its compiled step.
    config = small_config(place, train__epochs=6, train__save_every=100)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", jax.devices()[:1])
    assert runs.saved_steps(tmp_path / "run") == [2]


def lose_a_folder(saved):
    shutil.rmtree(saved / "optimizer")


def cut_off(saved):
    for path in (saved / "weights").rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            path.write_bytes(path.read_bytes()[:500])


def spoil_the_description(saved):
    (saved / "model" / "metadata").write_text("{")


def empty_the_description(saved):
    (saved / "model" / "metadata").write_text("{}")


def edit_the_description(saved):
    path = saved / "model" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mean": [0.1, 0.2, 0.3]}))


def empty_the_scores(saved):
    (saved / "metrics" / "metrics").write_text("")
    lose_a_folder(saved)


def change_a_weight(saved):
    """Replace the weights by others that Orbax can read."""
    description, variables = checkpoint.load(saved, make_mesh())
    variables = jax.tree.map(lambda x: np.asarray(x) + 1, variables)
    model = (saved / "model" / "metadata").read_text()
    other = saved.with_name("other")
    checkpoint.save_weights(other, description, variables, {})
    shutil.rmtree(saved / "weights")
    shutil.move(other / "weights", saved / "weights")
    shutil.rmtree(other)
    assert (saved / "model" / "metadata").read_text() == model


def resume(run, spoil, capsys):
    """Spoil a run's newest checkpoint, check that the run continues from the previous one, and return the warnings."""
    # This name is not a step number, although str.isdigit says so.
    (run / "checkpoints" / "²").mkdir()
    before, last = runs.saved_steps(run)[-2:]
    spoil(run / "checkpoints" / str(last))
    train(configuration.load_config(run / "config.json"), run, jax.devices()[:1])
    told = capsys.readouterr()
    assert f"warning: {run}/checkpoints/{last} is damaged" in told.err
    assert f"resuming {run} after step {before}" in told.out
    assert (run / "checkpoints" / f"damaged-{last}").is_dir()
    return told.err


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lose_a_folder, "optimizer/_METADATA"),
        (cut_off, "it cannot be read: Unterminated string"),
        (spoil_the_description, "it cannot be read: Expecting property name"),
        (empty_the_description, "its description of the model does not fit together: 'image_size'"),
        (edit_the_description, "its description of the model is not the one that was saved"),
        (empty_the_scores, "optimizer/_METADATA"),
    ],
)
def test_a_damaged_checkpoint_is_reported_and_the_previous_one_is_restored(
    finished, tmp_path, capsys, monkeypatch, spoil, reason
):
    run, restored = tmp_path / "run", []
    shutil.copytree(finished, run)
    # The next test trains on; here the state that training would start from is enough.
    monkeypatch.setattr(loop.Loop, "run", lambda loop, state, *_: restored.append(state))
    assert reason in resume(run, spoil, capsys)
    jax.tree.map(np.testing.assert_array_equal, restored[0].variables, weights(finished, int(restored[0].step)))


def test_a_run_whose_newest_checkpoint_is_damaged_ends_with_the_same_weights(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    resume(run, change_a_weight, capsys)
    jax.tree.map(np.testing.assert_array_equal, weights(run), weights(finished))


def test_if_all_checkpoints_are_damaged_training_does_not_start(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for step in runs.saved_steps(run):
        lose_a_folder(run / "checkpoints" / str(step))
    # The second attempt stands for a cluster that restarts the job.
    for _ in range(2):
        with pytest.raises(InputError, match=r"all checkpoints in .* are damaged; remove the folder to start"):
            train(configuration.load_config(run / "config.json"), run, jax.devices()[:1])


RESUME = """
import sys, jax
from pathlib import Path
from nrsrd_jax import checkpoint, config, training
from nrsrd_jax.command import one_line
jax.config.update("jax_num_cpu_devices", 1)
if sys.argv[2] == "midway":
    checkpoint.check_space = lambda *_: None
run = Path(sys.argv[1])
one_line(lambda: training.train(config.load_config(run / "config.json"), run))
"""


@pytest.mark.long
def test_on_a_full_disk_the_last_good_checkpoint_survives(finished, tmp_path):
    """Let the disk be full before a save, or become full during it. After space is made, the run continues."""
    run = tmp_path / "run"
    run.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40m", "none", str(run)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")

    def resume(when):
        done = people.start(["-c", RESUME, run, when])
        _, errors = done.communicate(timeout=200)
        return done.returncode, errors

    try:
        *_, before, last = runs.saved_steps(finished)
        shutil.copytree(finished, run, dirs_exist_ok=True, ignore=shutil.ignore_patterns(str(last), "tensorboard"))
        # Half a MiB is left, which is less than a checkpoint takes.
        (run / "ballast").write_bytes(bytes(shutil.disk_usage(run).free - 2**19))
        for when in ("midway", "before"):
            status, said = resume(when)
            assert (status, f"the last good one is {before}. Make room" in said) == (2, True), said
            assert runs.saved_steps(run)[-1] == before
        (run / "ballast").unlink()
        assert resume("before")[0] == 0
        jax.tree.map(np.testing.assert_array_equal, weights(run), weights(finished))
    finally:
        # A file that is still open must not make the test fail.
        subprocess.run(["umount", "--lazy", run], check=True)


def test_the_error_of_a_full_disk_gives_the_reason_without_its_number(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=0))
    state = SimpleNamespace(step=1, variables={"x": np.zeros(3)}, opt_state={})
    checkpoints = checkpoint.Checkpoints(tmp_path)
    with pytest.raises(InputError, match=r"cannot save the checkpoint of step 1 in \S+: no space: it needs 0 MiB, and"):
        checkpoints.save(state, people.small_model()[0], None)
    checkpoints.close()


def test_two_processes_cannot_use_the_same_work_directory(place, tmp_path):
    with owned(tmp_path / "run"), pytest.raises(InputError, match=rf"is in use by process {os.getpid()} on \S+; wait"):
        train(small_config(place), tmp_path / "run", jax.devices()[:1])
    # The directory can be used again once the first owner is done.
    with owned(tmp_path / "run"):
        pass


def test_the_error_for_a_loss_that_is_not_finite_names_the_batch(place, tmp_path):
    with pytest.raises(
        InputError, match=r"not finite at step 2: .*id_real nan, .*loss nan, .*triplet_real nan"
    ) as error:
        # The first update makes the weights so large that the next loss is NaN. Each step is checked, also if it is not
        # logged.
        train(small_config(place, optim__lr=1e30, train__log_every=100), tmp_path / "run", jax.devices()[:1])
    report = json.loads((tmp_path / "run/not_finite.json").read_text())
    assert report["step"] == 2
    assert len(report["files"]["real"]) == 16
    assert report["files"]["real"][0] in str(error.value)
    assert all(Path(path).is_file() for path in report["files"]["real"])
    assert not runs.saved_steps(tmp_path / "run")


def test_too_little_device_memory_is_an_error_before_the_first_step(place, tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "free_memory", lambda: 2**10)
    with pytest.raises(InputError, match=r"needs 0\.0 GiB on each device, and 0\.0 GiB are free: lower train"):
        train(small_config(place, train__epochs=6), tmp_path / "run", jax.devices()[:1])
    assert not (tmp_path / "run/metrics.jsonl").read_text()


@pytest.mark.long
def test_debug_nans_names_the_operation_that_gave_nan(place, tmp_path):
    config = small_config(place, optim__lr=1e30, train__debug_nans=True, train__batch_size=4)
    with pytest.raises(FloatingPointError, match=r"invalid value \(nan\) encountered in \w+"):
        train(config, tmp_path / "run", jax.devices()[:1])
