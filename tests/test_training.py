"""Test that training learns, resumes after a kill bit for bit, and does not depend on the number of devices."""

import json
import os
import shutil
import signal
import time

import jax
import numpy as np
import people
import pytest
import quick_steps
from people import small_config, train_command, write_images, write_night

from nrsrd_jax import checkpoint, loop, runs
from nrsrd_jax.errors import InputError
from nrsrd_jax.metrics_log import MACHINE
from nrsrd_jax.retrieval.embedding import Embedder
from nrsrd_jax.sharding import make_mesh
from nrsrd_jax.training import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def teacher(place):
    """Write aux/ as a bright auxiliary set beside night/, and train a teacher on aux/."""
    write_images(place / "aux", range(200, 210), cameras=(1, 2), frames=2)
    config = small_config(place, **{"data.name": "bright", "data.root": str(place / "aux"), "train.epochs": 1})
    train(config, place / "teacher", jax.devices()[:1])


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def steps_of(workdir):
    return [line for line in lines(workdir) if "loss" in line]


def weights(workdir):
    return jax.device_get(checkpoint.load(workdir, make_mesh(devices=jax.devices()[:1]))[1])


@pytest.mark.long
def test_any_number_of_devices_gives_the_same_losses(place, tmp_path):
    """Train the whole method on 8 devices. Resume halfway on 1 device, and on 4 that share each parameter by two."""
    # Without queries there is less to compile.
    options = {"data.name": "bright", "data.root": str(place / "night/bounding_box_train")}
    options |= {"train.epochs": 4, "train.save_every": 2}
    train(small_config(place, "nrsrd", **options), tmp_path / "8")
    whole = steps_of(tmp_path / "8")
    middle, last = runs.saved_steps(tmp_path / "8")
    assert (middle, last, len(whole)) == (4, 8, 8)
    for devices, model_parallel in ((1, 1), (4, 2)):
        run = tmp_path / f"{devices}-{model_parallel}"
        shutil.copytree(tmp_path / "8", run)
        shutil.rmtree(run / "checkpoints" / str(last))
        config = small_config(place, "nrsrd", **options, train__model_parallel=model_parallel)
        train(config, run, jax.devices()[:devices])
        moved = steps_of(run)
        # The first step starts from equal weights; later ones start from weights that differ by rounding.
        for name, bounds in {"loss": (1e-5, 1e-4), "gradient_norm": (1e-4, 1e-3)}.items():
            ours, theirs = ([row[name] for row in rows[middle:]] for rows in (moved, whole))
            np.testing.assert_allclose(ours[:1], theirs[:1], rtol=bounds[0], err_msg=f"{name} in {run.name}")
            np.testing.assert_allclose(ours, theirs, rtol=bounds[1], err_msg=f"{name} in {run.name}")


def compiled_steps(caplog) -> int:
    return sum("Compiling jit(train_step)" in message for message in caplog.messages)


def test_a_student_starts_from_a_backbone_compiles_its_step_once_and_logs_every_term(place, tmp_path, caplog):
    quick_steps.forget()
    # With so small a learning rate, the backbone is still the given one after the run.
    config = small_config(place, "nrsrd", init__checkpoint=str(place / "teacher"), optim__lr=1e-12)
    with jax.log_compiles():
        train(config, tmp_path / "run", jax.devices()[:2])
    ours, theirs = weights(tmp_path / "run")["params"], weights(place / "teacher")["params"]
    assert float(ours["base"]["blocks_0"]["attn"].pop("norm_ratio")) == pytest.approx(1.0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours["base"], theirs["base"])
    assert ours["classifier"]["kernel"].shape == (192, 8)
    assert compiled_steps(caplog) == 1
    first = steps_of(tmp_path / "run")[0]
    terms = {"id_real", "triplet_real", "id_syn", "triplet_syn", "distill"}
    names = {"accuracy_real", "accuracy_syn", "norm_ratio", "leverage", "logit_spread", "learning_rate"}
    assert first.keys() >= terms | names | {"loss", "gradient_norm", "parameter_norm", "epoch", "step"}
    factors = {"distill": 0.02}
    np.testing.assert_allclose(first["loss"], sum(factors.get(t, 0.5) * first[t] for t in terms), rtol=1e-5)
    assert (tmp_path / "run" / "tensorboard").is_dir()
    # Each row has the time and the memory too.
    for row in lines(tmp_path / "run"):
        assert abs(row["time"] - time.time()) < 600
        # These bounds would show a wrong unit.
        assert 0.05 < row["host_peak_gib"] < 100
    rates = [row["images_per_second"] for row in steps_of(tmp_path / "run")[1:]]
    assert all(rate > 0 for rate in rates)
    scores = lines(tmp_path / "run")[-1]
    assert 0 < scores["mAP"] <= 1


@pytest.mark.long
def test_training_learns_identities_that_differ_in_colour(place, tmp_path):
    config = small_config(place, train__epochs=30, augment__erasing=0.0, **{"eval.every": 30, "train.save_every": 30})
    scores = train(config, tmp_path / "run", jax.devices()[:1])
    curve = [line["loss"] for line in steps_of(tmp_path / "run")]
    assert np.mean(curve[-5:]) < 0.7 * np.mean(curve[:5])
    assert scores["mAP"] > 0.6


def test_the_image_cache_does_not_change_the_losses(place, tmp_path):
    curves = {}
    for cache in ("disk", "device", "none"):
        train(small_config(place, train__epochs=1, data__cache=cache), tmp_path / cache, jax.devices()[:1])
        curves[cache] = [line["loss"] for line in steps_of(tmp_path / cache)]
    assert curves["disk"] == curves["device"] == curves["none"]


def start(place, workdir):
    return people.start(train_command(small_config(place, train__epochs=6), workdir))


def test_a_killed_run_resumes_and_gives_the_same_weights_bit_for_bit(place, finished, tmp_path):
    killed = tmp_path / "killed"
    log = killed / "metrics.jsonl"
    process = start(place, killed)
    deadline = time.time() + 120
    # After four of the twelve steps, the checkpoint of the first epoch is complete.
    while not log.exists() or sum('"loss"' in line for line in log.read_text().splitlines()) < 4:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.time() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    resumed = start(place, killed)
    output, _ = resumed.communicate(timeout=120)
    assert resumed.returncode == 0
    assert "resuming" in output
    jax.tree.map(np.testing.assert_array_equal, weights(killed), weights(finished))
    assert [line["step"] for line in steps_of(killed)] == [line["step"] for line in steps_of(finished)]
    last = [lines(run)[-1] for run in (killed, finished)]
    scores = [{name: value for name, value in line.items() if name not in MACHINE} for line in last]
    assert scores[0] == scores[1]


@pytest.mark.long
def test_a_curriculum_with_consistency_resumes_bit_for_bit(place, tmp_path):
    options = {"aux.curriculum_epochs": 3, "loss.consistency": 1.0, "train.epochs": 4, "train.save_every": 2}
    options |= {"data.name": "bright", "data.root": str(place / "night/bounding_box_train")}
    config = small_config(place, "mdl", **options)
    train(config, tmp_path / "whole", jax.devices()[:1])
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed/checkpoints" / str(runs.saved_steps(tmp_path / "resumed")[-1]))
    train(config, tmp_path / "resumed", jax.devices()[:1])
    jax.tree.map(np.testing.assert_array_equal, weights(tmp_path / "resumed"), weights(tmp_path / "whole"))
    assert all(0 <= row["consistency"] <= 2 for row in steps_of(tmp_path / "whole"))
    # The curriculum changes what is learnt.
    train(small_config(place, "mdl", **options | {"aux.curriculum_epochs": 0}), tmp_path / "dark", jax.devices()[:1])
    assert steps_of(tmp_path / "dark")[1]["loss"] != steps_of(tmp_path / "whole")[1]["loss"]


def test_training_reports_its_accuracy_and_warns_if_it_is_near_chance(place, tmp_path, capsys):
    config = small_config(place, **{"data.name": "bright", "data.root": str(place / "aux"), "train.epochs": 1})
    poor = train(config, tmp_path / "run", jax.devices()[:1])
    assert 0 <= poor["training_accuracy"] < 0.2
    warning = "near chance (10.0% for 10 identities): this model has learned little"
    assert warning in capsys.readouterr().err
    # A finished run reports the same again.
    assert train(config, tmp_path / "run", jax.devices()[:1]) == poor
    assert warning in capsys.readouterr().err
    # A better run would take forty epochs. Its log differs in these numbers; the first one is of another epoch.
    rows = ((1, 0, 0.0), (1, 1, 0.4), (2, 1, 0.6))
    text = "".join(json.dumps({"step": a, "epoch": b, "accuracy_real": c}) + "\n" for a, b, c in rows)
    (tmp_path / "run/metrics.jsonl").write_text(text)
    good = train(config, tmp_path / "run", jax.devices()[:1])
    assert good["training_accuracy"] == pytest.approx(0.5)
    assert "near chance" not in capsys.readouterr().err


def test_a_run_cannot_resume_with_other_images(place, tmp_path):
    write_night(tmp_path / "night")
    config = small_config(tmp_path, train__epochs=1)
    train(config, tmp_path / "run", jax.devices()[:1])
    next((tmp_path / "night" / "bounding_box_train").iterdir()).unlink()
    with pytest.raises(InputError, match="not those that this run started with"):
        train(config, tmp_path / "run", jax.devices()[:1])


def test_the_best_and_the_last_two_checkpoints_are_kept(place, tmp_path):
    config = small_config(place, train__epochs=6, eval__every=1)
    train(config, tmp_path / "run", jax.devices()[:1])
    scores = {line["step"]: line["mAP"] for line in lines(tmp_path / "run") if "mAP" in line}
    kept = {int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()}
    best = max(scores, key=lambda step: (scores[step], step))
    assert kept == {best, *sorted(scores)[-2:]}
    assert runs.find_checkpoint(tmp_path / "run").name == str(best)
    assert runs.run_of(runs.find_checkpoint(tmp_path / "run")) == tmp_path / "run"

    # After an evaluation that was repeated, only the log has the score.
    last = max(scores)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / str(last) / "metrics")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as log:
        print(json.dumps({"step": last, "mAP": 1.0 + max(scores.values())}), file=log)
    assert runs.find_checkpoint(tmp_path / "run").name == str(last)


def test_an_unreadable_image_or_work_directory_is_an_error_before_compiling(place, tmp_path, caplog):
    quick_steps.forget()
    write_night(tmp_path / "night")
    next((tmp_path / "night" / "query").iterdir()).write_bytes(b"")
    with jax.log_compiles(), pytest.raises(InputError, match=r"cannot read the image .*query"):
        train(small_config(tmp_path), tmp_path / "run", jax.devices()[:1])
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot create the work directory"):
        train(small_config(place), tmp_path / "file", jax.devices()[:1])
    (tmp_path / "run" / "checkpoints").write_text("")
    with pytest.raises(InputError, match=r"checkpoints is a file; choose another --workdir"):
        train(small_config(place), tmp_path / "run", jax.devices()[:1])
    assert compiled_steps(caplog) == 0


def test_the_embedder_loads_runs_and_checkpoints_and_embeds_every_image(place):
    embedder = Embedder.load(place / "teacher", batch_size=3)
    images = np.random.default_rng(0).integers(0, 256, (13, 32, 16, 3), np.uint8)
    features = embedder(images)
    assert features.shape == (13, 192)
    assert features.dtype == np.float32
    # A batch of three images is rounded up to the eight devices, so these counts fill batches in part and exactly.
    for count in (1, 8, 12):
        np.testing.assert_allclose(embedder(images[:count]), features[:count], atol=2e-5)
    assert embedder(images[:0]).shape == (0, 192)
    same = Embedder.load(runs.find_checkpoint(place / "teacher"))
    np.testing.assert_allclose(same(images), features, atol=2e-5)
    with pytest.raises(ValueError, match=r"takes uint8 \[N, 32, 16, 3\]"):
        embedder(images[:, :16])


def spoil_query(place, root):
    write_images(root / "bounding_box_train", range(8))
    write_images(root / "query", [1], cameras=(1,), frames=1)
    write_images(root / "bounding_box_test", [1], cameras=(1,), frames=2)


def spoil_image(place, root):
    write_night(root)
    next((root / "bounding_box_train").iterdir()).write_bytes(b"no picture")


def test_a_last_evaluation_that_failed_is_repeated_and_a_finished_run_is_not_changed(place, tmp_path, monkeypatch):
    """Check that the same command evaluates the saved weights, and that a third one reads the scores from the log."""
    real, calls = loop.evaluate, []

    def evaluate(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise MemoryError
        return real(*arguments)

    monkeypatch.setattr(loop, "evaluate", evaluate)
    config = small_config(place, train__epochs=1)
    with pytest.raises(MemoryError):
        train(config, tmp_path / "run", jax.devices()[:1])
    scores = train(config, tmp_path / "run", jax.devices()[:1])
    assert scores["mAP"] > 0
    before = (tmp_path / "run/metrics.jsonl").read_text()
    assert train(config, tmp_path / "run", jax.devices()[:1]) == scores
    assert len(calls) == 2
    with pytest.raises(InputError, match=r"holds a run with other options \(optim.lr: 0.001 -> 0.5\)"):
        train(small_config(place, train__epochs=1, optim__lr=0.5), tmp_path / "run", jax.devices()[:1])
    assert (tmp_path / "run/metrics.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("options", "spoil", "message"),
    [
        (
            {},
            spoil_query,
            "none of the 1 queries of night600 has a match by the cross-camera.*look at the identities",
        ),
        ({}, spoil_image, "cannot read the image .*bounding_box_train"),
        ({"train.batch_size": 20}, None, "train.batch_size 20 does not divide among 8 devices"),
        ({"train.batch_size": 64}, None, "8 identities, but a batch of 64 takes 32"),
        ({"model.backbone": "vit_huge"}, None, "model.backbone is 'vit_huge'"),
        (
            {"init.checkpoint": "TEACHER", "model.depth": 2},
            None,
            "is a vit_tiny of 1 block, but the model is a vit_tiny of 2 blocks",
        ),
        ({"init.checkpoint": "nowhere"}, None, "nowhere does not exist; .* nrsrd convert WEIGHTS --output nowhere$"),
        ({"data.root": "nowhere"}, None, "no folder nowhere for data set night600: ask its authors"),
        ({"data.mean": "dark"}, None, "data.mean is 'dark'; choose half, dataset or three numbers"),
        ({"image_size": (30, 16)}, None, r"image_size is \(30, 16\); it takes height and width, multiples of 16"),
        ({"data.cache": "ram"}, None, "data.cache is 'ram'; choose one of device, disk, none"),
        ({"optim.name": "lamb"}, None, "optim.name is 'lamb'"),
        ({"train.epochs": 0}, None, "train.epochs is 0; it must be positive"),
        ({"aux.enabled": True, "degradation.light": (2.0, 1.0)}, None, "degradation.light is"),
        ({"aux.enabled": True, "aux.bright_root": "nowhere"}, None, "aux.bright_root is 'nowhere', not a folder"),
        ({"aux.enabled": True, "teacher.enabled": True, "teacher.checkpoint": "nowhere"}, None, "train a teacher with"),
        ({"aux.enabled": True, "teacher.enabled": True, "aux.bright_root": "NIGHT"}, None, "trained on 10 identities"),
    ],
)
def test_a_mistake_gives_a_one_line_error_before_compiling(place, tmp_path, caplog, options, spoil, message):
    quick_steps.forget()
    config = small_config(place)
    names = {"TEACHER": str(place / "teacher"), "NIGHT": str(place / "night")}
    config.update_from_flattened_dict({k: names.get(v, v) if isinstance(v, str) else v for k, v in options.items()})
    if spoil:
        spoil(place, tmp_path / "night")
        config.data.root = str(tmp_path / "night")
    with jax.log_compiles(), pytest.raises(InputError, match=message) as error:
        train(config, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert compiled_steps(caplog) == 0
