"""Test pretraining without labels, from a folder of crops to a backbone that a training starts from."""

import contextlib
import io
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from people import small_config, small_model, write_images, write_night

from nrsrd_jax import checkpoint, select
from nrsrd_jax.augment import prepared
from nrsrd_jax.build import degradation_options
from nrsrd_jax.checkpoint import save_weights
from nrsrd_jax.config import get_config
from nrsrd_jax.data.images import decode
from nrsrd_jax.errors import InputError
from nrsrd_jax.inputs import read_records
from nrsrd_jax.metrics_log import read_metrics
from nrsrd_jax.options import read_options
from nrsrd_jax.pretraining import step
from nrsrd_jax.pretraining.views import Views
from nrsrd_jax.retrieval import Embedder
from nrsrd_jax.retrieval.result import evaluate_run
from nrsrd_jax.sharding import make_mesh
from nrsrd_jax.training import train
from nrsrd_jax.weights import from_torch, to_torch, torch_file

pytestmark = pytest.mark.slow


def unlabelled(place, **options):
    """Return the config of a pretraining on `place`/crops that takes seconds."""
    return small_config(
        place,
        **{
            "dino__enabled": True,
            "dino__prototypes": 32,
            "dino__hidden": 16,
            "dino__bottleneck": 8,
            "dino__local_views": 2,
            "dino__local_size": (16, 16),
            "dino__koleo": 0.1,
            "dino__swap": 0.5,
            "data__name": "crops",
            "data__root": str(place / "crops"),
            "train__batch_size": 8,
            # A pretraining refuses options that would change nothing, so this one gets its default again.
            "train__instances": 4,
            "eval__every": 0,
        }
        | options,
    )


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """Write a folder of crops without labels and a labelled data set. Return the folder of both."""
    place = tmp_path_factory.mktemp("pretraining")
    write_images(place / "crops" / "monday", range(8), frames=1)
    write_night(place / "night")
    return place


@pytest.fixture(scope="module")
def pretrained(crops):
    """Pretrain for two epochs. Return the config and the scores of the teacher on the labelled set."""
    config = unlabelled(crops, eval__data__name="night600", eval__data__root=str(crops / "night"))
    scores = train(config, crops / "run", jax.devices()[:1])
    return config, scores


def weights(run):
    return checkpoint.weights_hash(checkpoint.load(run, make_mesh())[1])


def test_pretraining_logs_statistics_of_the_teacher_and_scores_it(crops, pretrained):
    _, scores = pretrained
    rows = read_metrics(crops / "run")
    assert 0 <= scores["mAP"] <= 1
    steps = [row for row in rows if "loss" in row]
    assert len(steps) == 4
    assert {"centre_norm", "teacher_entropy", "teacher_information", "learning_rate"} <= steps[-1].keys()
    assert all(0 < row["loss"] < 20 for row in steps)


def test_a_pretraining_without_labelled_data_cannot_be_evaluated(crops, pretrained):
    unnamed = {"eval.data.name": "", "eval.data.root": ""}
    with pytest.raises(InputError, match=r"crops holds crops without labels, .* --config.eval.data.name=night600"):
        evaluate_run(str(crops / "run"), overrides=unnamed)


def test_a_resumed_pretraining_gives_the_same_weights(crops, pretrained):
    config, _ = pretrained
    before = weights(crops / "run")
    shutil.copytree(crops / "run", crops / "killed")
    # The run was killed after its first epoch, before the last checkpoint.
    shutil.rmtree(crops / "killed" / "checkpoints" / "4")
    train(config, crops / "killed", jax.devices()[:1])
    assert weights(crops / "killed") == before


@pytest.mark.long
@pytest.mark.parametrize("devices", [2, 4])
def test_more_devices_give_the_losses_of_one(crops, pretrained, devices):
    config, _ = pretrained
    train(config, crops / f"{devices}", jax.devices()[:devices])
    one, more = ([row["loss"] for row in read_metrics(crops / run) if "loss" in row] for run in ("run", f"{devices}"))
    np.testing.assert_allclose(more, one, rtol=1e-5)


@pytest.fixture(scope="module")
def again(crops, pretrained):
    """Pretrain from the first one's weights without changing them. Return its last metrics and its stderr.

    Its crops come from a list and the student sees dark views. Its temperature makes all outputs of the teacher alike.
    """
    files = sorted((crops / "crops").rglob("*.jpg"))[:8]
    (crops / "list.csv").write_text("path\n" + "\n".join(map(str, files)) + "\n")
    config = unlabelled(
        crops,
        data__root=str(crops / "list.csv"),
        init__checkpoint=str(crops / "run"),
        dino__night=1.0,
        dino__temperature_end=100.0,
        optim__lr=1e-30,
        train__epochs=1,
    )
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        last = train(config, crops / "again", jax.devices()[:1])
    return last, errors.getvalue()


def test_a_pretraining_starts_from_the_weights_of_another(crops, again):
    base, started = (checkpoint.load(crops / run, make_mesh())[1]["params"]["base"] for run in ("run", "again"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), started, base)


def test_a_list_of_crops_and_dark_views_give_a_finite_loss(again):
    assert np.isfinite(again[0]["loss"])


def test_at_night_the_student_sees_a_darker_second_view_than_the_teacher(monkeypatch):
    # Random views of grey images would be grey as well, but take seconds to compile.
    monkeypatch.setattr(
        step, "make_views", lambda key, images, views: jnp.full((8, len(views.blur), *views.size, 3), 0.6)
    )
    large, small = (
        Views((32, 16), (0.4, 1.0), (0.75, 1.33), (1.0, 0.1)),
        Views((16, 16), (0.05, 0.4), (0.75, 1.33), (0.5,) * 2),
    )
    degradation = degradation_options(read_options(get_config("nrsrd")))
    prepare = step.Preparation(large, small, (0.0,) * 3, (1.0,) * 3, night=1.0, degradation=degradation)
    views = prepare(jax.random.key(0), jnp.zeros((8, 32, 16, 3), jnp.uint8))
    np.testing.assert_array_equal(views["global"][:, 0], views["teacher"][:, 0])
    ours, theirs = (views[name][:, 1].mean((1, 2, 3)) for name in ("global", "teacher"))
    assert (ours < 0.8 * theirs).all()


def test_a_collapsed_pretraining_gives_a_warning(again):
    last, errors = again
    assert last["teacher_information"] < 0.02
    assert "the pretraining has collapsed" in errors


def test_a_teacher_exported_in_dinos_form_gives_the_same_features(crops, pretrained, tmp_path):
    tensors, _ = to_torch.export(crops / "run", backbone=True)
    torch_file.save(tmp_path / "dino.pth", tensors, wrapper="teacher")
    description, variables, _, _ = from_torch.convert(tmp_path / "dino.pth", image_size=(32, 16))
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 16, 3), np.uint8)
    given = description.create_model().apply(variables, prepared(images, description.mean, description.std, 0.0))
    # Converted files are normalised by 0.5, and so is this pretraining.
    np.testing.assert_allclose(given["embedding"], Embedder.load(crops / "run")(images), atol=1e-5)


def selected(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["nrsrd select", *map(str, arguments)])
    select.main()


def test_select_keeps_the_crops_whose_features_fine_tuning_moved_least(crops, tmp_path, monkeypatch, capsys):
    for name, seed in (("before", 0), ("after", 1)):
        save_weights(tmp_path / name, *small_model(1, seed=seed), {})
    models = ["--source", tmp_path / "before", "--tuned", tmp_path / "after"]
    selected(monkeypatch, crops / "crops", *models, "--keep", "0.25", "--output", tmp_path / "list.csv")
    assert "kept 4 of 16 crops" in capsys.readouterr().out
    header, *rows = (tmp_path / "list.csv").read_text().splitlines()
    assert header == "path,score"
    files = sorted((crops / "crops").rglob("*.jpg"))
    images = np.stack([decode(path, (32, 16), "bilinear") for path in files])
    a, b = (Embedder.load(tmp_path / name)(images) for name in ("before", "after"))
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    best = np.argsort(-cosines)[:4]
    assert [row.split(",")[0] for row in rows] == [str(files[i]) for i in best]
    np.testing.assert_allclose([float(row.split(",")[1]) for row in rows], cosines[best], atol=1e-5)
    records = read_records(
        read_options(unlabelled(crops, data__include=str(tmp_path / "list.csv"), train__batch_size=4))
    )
    assert {str(path) for path in records.train.paths} == {str(files[i]) for i in best}
    with pytest.raises(InputError, match="the same weights"):
        selected(monkeypatch, crops / "crops", "--source", tmp_path / "after", "--tuned", tmp_path / "after")


def test_select_refuses_models_with_different_features_before_it_embeds(crops, tmp_path, monkeypatch):
    description, variables = small_model(1, size=(64, 32))
    save_weights(tmp_path / "plain", description, variables, {})
    save_weights(tmp_path / "parts", *small_model(1, size=(64, 32), jpm=True), {})
    neck = variables["batch_stats"]["bottleneck"]
    neck["mean"] = np.ones_like(neck["mean"])
    save_weights(tmp_path / "trained", description, variables, {})
    monkeypatch.setattr("nrsrd_jax.retrieval.files.embed_all", None)
    for tuned, feature, words in (
        ("parts", "cls", r"have 192 numbers and those of --tuned 960: give .* with model\.jpm or both without"),
        ("trained", "auto", "cls for --source and centred for --tuned: .* set --feature cls"),
    ):
        models = "--source", tmp_path / "plain", "--tuned", tmp_path / tuned
        with pytest.raises(InputError, match=words):
            selected(monkeypatch, crops / "crops", *models, "--feature", feature)


@pytest.mark.parametrize("share", ["most", "0", "1.5", "nan"])
def test_the_share_to_keep_must_be_above_0_and_at_most_1(monkeypatch, capsys, share):
    with pytest.raises(SystemExit):
        selected(monkeypatch, "crops", "--source", "a", "--tuned", "b", "--keep", share)
    assert f"argument --keep: {share} is not a share above 0 and at most 1, like 0.6" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data__root": "/nowhere"}, "/nowhere does not exist"),
        ({"train__batch_size": 64}, "there are 16 images, fewer than train.batch_size 64"),
        ({"dino__local_size": (20, 16)}, r"dino.local_size is \(20, 16\).*multiples of 16"),
        ({"dino__ratio": (0.001, 0.002)}, "dino.ratio is 0.001,0.002"),
        ({"train__batch_size": 1}, "dino.swap and dino.koleo need other images in the batch"),
        ({"dino__enabled": False}, "would have no effect without dino.enabled"),
        ({"dino__local_scale": (0.5, 0.1)}, "dino.local_scale is 0.5,0.1"),
        ({"optim__name": "sgd"}, "dino.enabled needs adamw"),
        ({"aux__enabled": True}, "dino.enabled needs aux.enabled=False"),
        ({"data__holdout": 0.5}, "data.holdout needs labels"),
        (
            {"loss__margin": 0.3, "augment__pad": 5, "norm_ratio__init": 2.0, "train__instances": 2, "optim__lead": 1},
            "augment.pad, norm_ratio.init, loss.margin, optim.lead, train.instances would have no effect",
        ),
        ({"dino__temperature": 0.02}, "dino.temperature would have no effect, as dino.temperature_epochs is 0"),
    ],
)
def test_options_that_cannot_work_are_refused_before_training_starts(crops, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        train(unlabelled(crops, **options), tmp_path / "run", jax.devices()[:1])
    assert not list(tmp_path.glob("run/checkpoints/*"))


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("", "a part between commas is empty"),
        ("{crops},", "a part between commas is empty"),
        ("{crops},/nowhere", "/nowhere does not exist; give folders or lists"),
    ],
)
def test_a_data_root_with_an_empty_or_missing_part_is_refused(crops, root, message):
    with pytest.raises(InputError, match=message):
        read_records(read_options(unlabelled(crops, data__root=root.format(crops=crops / "crops"))))


def test_folders_with_spaces_and_commas_in_their_names_are_read(crops):
    # A comma separates folders, unless the whole text names a folder that exists.
    for name in ("my crops", "one, two"):
        write_images(crops / name, range(8), frames=1)
        records = read_records(read_options(unlabelled(crops, data__root=str(crops / name))))
        assert len(records.train) == 16


def test_a_list_of_other_crops_and_a_folder_as_a_list_are_refused(crops):
    (crops / "other.csv").write_text("path\nelsewhere.jpg\n")
    for given, message in (
        ("other.csv", "1 of its 1 crops are not in data.root"),
        ("crops", "is not a list"),
    ):
        options = read_options(unlabelled(crops, data__include=str(crops / given)))
        with pytest.raises(InputError, match=message):
            read_records(options)


def test_a_list_of_absolute_paths_matches_a_relative_data_root(crops, monkeypatch):
    files = sorted((crops / "night" / "bounding_box_train").glob("*.jpg"))[:8]
    (crops / "night.csv").write_text("path\n" + "\n".join(map(str, files)) + "\n")
    monkeypatch.chdir(crops)
    config = unlabelled(crops, data__name="bright", data__root="night/bounding_box_train", data__include="night.csv")
    assert len(read_records(read_options(config)).train) == 8


@pytest.mark.parametrize(("name", "root"), [("crops", "crops"), ("bright", "night/bounding_box_train")])
def test_a_crop_that_is_both_included_and_excluded_is_left_out(crops, name, root):
    files = sorted((crops / root).rglob("*.jpg"))[:9]
    (crops / "list.csv").write_text("path\n" + "\n".join(map(str, files)) + "\n")
    (crops / "bad.txt").write_text(f"{files[0]}\n")
    lists = {"data__include": str(crops / "list.csv"), "data__exclude": str(crops / "bad.txt")}
    records = read_records(read_options(unlabelled(crops, data__name=name, data__root=str(crops / root), **lists)))
    assert list(records.train.paths) == files[1:]
