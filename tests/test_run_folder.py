"""Test run folders that somebody else made: hostile or forged content is refused, and links are not followed."""

import json
import os
import re
import resource
import shutil

import jax
import numpy as np
import psutil
import pytest
from people import small_config, small_model

from nrsrd_jax import checkpoint, runs, stored
from nrsrd_jax import config as configuration
from nrsrd_jax.description import description_hash
from nrsrd_jax.errors import InputError, printable
from nrsrd_jax.metrics_log import logged_scores, read_metrics
from nrsrd_jax.sharding import make_mesh
from nrsrd_jax.training import train

pytestmark = pytest.mark.slow


def weights(run):
    return checkpoint.load(run / "checkpoints" / str(max(runs.saved_steps(run))), make_mesh())[1]


def rewrite_the_description(saved, **changes):
    """Change values in a checkpoint's description and correct its hash."""
    path = saved / "model" / "metadata"
    values = json.loads(path.read_text())
    values["provenance"] |= changes.pop("provenance", {})
    values |= changes
    values["provenance"]["model_sha256"] = description_hash(values)
    path.write_text(json.dumps(values))


def test_folders_that_are_not_steps_of_this_run_are_set_aside(place, finished, tmp_path, capsys):
    """Add a copy of another step, impossible steps and forged text. Each gives a one-line warning and is not used."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    folder = run / "checkpoints"
    good, last = runs.saved_steps(run)
    shutil.rmtree(folder / str(last))
    # The largest numbers do not fit in 32 and in 64 bits.
    copied, forged, *beyond = good + 2, good + 1, last + 1, 2**31, 10**30
    for step in (copied, forged, *beyond):
        shutil.copytree(folder / str(good), folder / str(step))
        if step != copied:
            rewrite_the_description(folder / str(step), provenance={"step": step})
    rewrite_the_description(folder / str(forged), **{"\x1b[2J\nerror: forged": 1})
    with pytest.raises(InputError, match=rf"{copied} is damaged: it holds the weights of step {good}"):
        checkpoint.load(folder / str(copied), make_mesh())
    train(configuration.load_config(run / "config.json"), run, jax.devices()[:1])
    told = capsys.readouterr()
    assert f"resuming {run} after step {good}" in told.out
    reasons = dict.fromkeys(beyond, f"the run has only {last} steps") | {
        copied: f"it holds the weights of step {good}",
        forged: r"it cannot be read: .*got an unexpected keyword argument '\\x1b\[2J\\nerror: forged'",
    }
    for step, reason in reasons.items():
        assert re.search(rf"^warning: {folder}/{step} is damaged: {reason}", told.err, re.MULTILINE), told.err
        assert (folder / f"damaged-{step}").is_dir()
    jax.tree.map(np.testing.assert_array_equal, weights(run), weights(finished))


@pytest.mark.parametrize("name", ["model/metadata", "weights/manifest.ocdbt", "weights/_METADATA"])
@pytest.mark.parametrize("kind", ["pipe", "deep", "missing", "zeros", "folder"])
def test_a_damaged_file_in_a_checkpoint_gives_a_one_line_error(small_checkpoint, name, kind):
    path = small_checkpoint / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(b"[" * 100_000 if kind == "deep" else bytes(1000))
    with pytest.raises(InputError, match=r"small is damaged: ") as refused:
        checkpoint.load(small_checkpoint, make_mesh())
    assert printable(refused.value) == str(refused.value)
    assert "Errno" not in str(refused.value)


def test_old_checkpoints_without_a_hashed_step_still_resume(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    last = max(runs.saved_steps(run))
    path = run / "checkpoints" / str(last) / "model" / "metadata"
    values = json.loads(path.read_text())
    assert values["provenance"].pop("step") == last
    path.write_text(json.dumps(values))
    rewrite_the_description(run / "checkpoints" / str(last))
    train(configuration.load_config(run / "config.json"), run, jax.devices()[:1])
    told = capsys.readouterr().out
    assert f"{run} is complete after {last} steps" in told
    assert "\nnight600: query_pixels_sha256 " in told


@pytest.fixture
def small_checkpoint(tmp_path):
    checkpoint.save_weights(tmp_path / "small", *small_model(1), {})
    return tmp_path / "small"


def test_arrays_that_unpack_to_far_more_than_their_size_on_disk_are_refused_before_memory_is_taken(small_checkpoint):
    """Use compressed zeros in weights and in tensors kept for PyTorch, and sizes that a description only claims."""
    description, variables = small_model(1)
    zeros = {"x": np.zeros(2**25, np.float32)}
    checkpoint.save_weights(small_checkpoint.with_name("kept"), description, variables, zeros)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"is damaged: \d+ KiB of its torch would take 128 MiB of memory"):
        checkpoint.load_kept(small_checkpoint.with_name("kept"), description)
    for change in ({"classes": 10**6, "identities": []}, {"classes": 10**15, "identities": []}, {"aux_classes": 10**8}):
        rewrite_the_description(small_checkpoint, **change)
        with pytest.raises(
            InputError, match=r"is damaged: (\d+ KiB of its weights would take \d+ MiB|weights/ holds|it cannot)"
        ):
            checkpoint.load(small_checkpoint, make_mesh())
    # ru_maxrss is in KiB.
    # Each of these arrays would have taken more than 64 MiB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < peak + 2**16


def test_weights_that_do_not_fit_in_the_free_memory_are_refused_before_they_are_read(small_checkpoint, monkeypatch):
    assert 0 < stored.free_host_memory() <= psutil.virtual_memory().total
    monkeypatch.setattr(stored, "free_host_memory", lambda: 2**20)
    with pytest.raises(InputError, match=r"small/weights needs 0\.0 GiB of memory, and 0\.0 GiB are free: free some"):
        checkpoint.load(small_checkpoint, make_mesh())


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", ".lock", "tensorboard", "checkpoints"])
def test_training_does_not_write_through_links_in_its_folder(place, tmp_path, name):
    """Place links in the work directory. If it came from an archive, they may point to any of the user's files."""
    run, victim = tmp_path / "run", tmp_path / "victim"
    run.mkdir()
    folder = name in ("tensorboard", "checkpoints")
    victim.mkdir() if folder else victim.write_text("precious")
    (run / name).symlink_to(victim)
    with pytest.raises(InputError, match=rf"{name}.* is a symbolic link; remove it"):
        train(small_config(place), run, jax.devices()[:1])
    assert not any(victim.iterdir()) if folder else victim.read_text() == "precious"


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "text", [DEEP, '{"mAP": ' + DEEP, '{"mAP": NaN}', '{"mAP": 1e999}', f'{{"mAP": {"9" * 400}}}', "\0", "[]", ""]
)
def test_an_unreadable_score_or_list_of_items_is_set_aside(finished, tmp_path, text):
    """Check that the checkpoint is still used and that its score is taken from the log."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    last = max(runs.saved_steps(run))
    (run / "checkpoints" / str(last) / "metrics" / "metrics").write_text(text)
    (run / "checkpoints" / str(last) / stored.ITEMS).write_text(text)
    assert runs.saved_score(run, last) is None
    assert runs.known_score(run, last) == logged_scores(run, 6)["mAP"]
    checkpoint.Checkpoints(run).close()
    assert (run / "checkpoints" / str(last) / "damaged-metrics").is_dir()


@pytest.mark.parametrize(
    "values",
    [
        DEEP,
        "\0",
        "9" * 5000,
        {"data": None},
        {"train": {"epochs": 10**30}},
        {"optim": {"lr": 10**400}},
        {"data": {"root": "a\0b"}},
        {"data": {"root": "\ud800"}},
        {"image_size": None},
        {"\x1b[2J\nforged": 1},
    ],
)
def test_a_config_that_no_run_wrote_gives_a_one_line_error(tmp_path, values):
    path = tmp_path / "config.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    with pytest.raises(InputError, match=r"config.json is not the config of a run") as refused:
        configuration.load_config(path)
    assert printable(refused.value) == str(refused.value)


def test_a_pipe_in_place_of_a_config_or_log_is_refused_without_waiting(tmp_path):
    for name, read in (
        ("config.json", configuration.load_config),
        ("metrics.jsonl", lambda path: read_metrics(path.parent)),
    ):
        os.mkfifo(tmp_path / name)
        with pytest.raises(InputError, match="is not a regular file"):
            read(tmp_path / name)


def test_a_checkpoint_is_found_by_a_path_with_dots(finished, tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    shutil.copytree(finished, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "inner")
    assert runs.find_checkpoint("../run").is_relative_to(tmp_path / "run")
    assert checkpoint.load("../run", make_mesh())[0] == checkpoint.load(tmp_path / "run", make_mesh())[0]


def test_the_error_says_why_a_folder_has_no_checkpoint(finished, tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist"):
        runs.find_checkpoint(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is neither a checkpoint nor the work directory"):
        runs.find_checkpoint(tmp_path)
    shutil.copy(finished / "config.json", tmp_path)
    with pytest.raises(InputError, match=r"a run without a checkpoint yet; the same nrsrd train command continues it"):
        runs.find_checkpoint(tmp_path)


@pytest.mark.parametrize("changes", [
    {"mean": [1e308, 0, 0]}, {"std": [1e-300] * 3}, {"provenance": {"config": [1]}}, {"cameras": [1.5]},
])  # fmt: skip
def test_impossible_values_in_a_description_are_refused(small_checkpoint, changes):
    rewrite_the_description(small_checkpoint, **changes)
    with pytest.raises(InputError, match="its description of the model does not fit together"):
        checkpoint.load(small_checkpoint, make_mesh())
