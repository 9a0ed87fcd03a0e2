"""Test the evaluation of a checkpoint: protocols, the feature cache, re-ranking and dimmed images."""

import json

import numpy as np
import pytest
from people import small_config, small_model, write_images, write_night
from PIL import Image

from nrsrd_jax.checkpoint import save_weights
from nrsrd_jax.data import datasets
from nrsrd_jax.data.protocol import make_target
from nrsrd_jax.errors import InputError
from nrsrd_jax.inputs import read_targets
from nrsrd_jax.options import read_options
from nrsrd_jax.retrieval import embedding
from nrsrd_jax.retrieval.embedding import Embedder
from nrsrd_jax.retrieval.illumination import darkener, read_lights
from nrsrd_jax.retrieval.ranking import rank_features, rank_metrics
from nrsrd_jax.retrieval.rerank import k_reciprocal
from nrsrd_jax.retrieval.result import evaluate_run, full_table

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path):
    """Write a data set to night/ and a checkpoint with random weights to weights/. Return their folder."""
    write_night(tmp_path / "night", frames=1)
    save_random_weights(tmp_path / "weights", 0)
    return tmp_path


def save_random_weights(path, seed):
    save_weights(path, *small_model(1, seed=seed), {})


def run(place, options=(), **arguments):
    config = small_config(place, **dict(options))
    return evaluate_run("", str(place / "weights"), str(place / "r.json"), config, {}, **arguments)[0]


def dataset(root, query, gallery):
    """Write a data set whose query and gallery are given as {file name: content}, and read it."""
    for folder, files in (("query", query), ("bounding_box_test", gallery)):
        (root / folder).mkdir(parents=True)
        for name, content in files.items():
            (root / folder / name).write_bytes(content)
    write_images(root / "bounding_box_train", range(2))
    return datasets.read_dataset("night600", root)


def test_each_protocol_leaves_out_the_right_gallery_images(tmp_path):
    """Check that cross-camera leaves out the query's camera, and all-cameras only copies of the query by content."""
    query = {"0001_c1_0.jpg": b"same", "0001_c1_1.jpg": b"else"}
    gallery = {"0001_c1_5.jpg": b"same", "0001_c1_6.jpg": b"another", "0001_c2_0.jpg": b"other"}
    data = dataset(tmp_path, query, gallery)

    def left_out(protocol):
        target = make_target(data, protocol)
        return (target.gallery_views == target.query_views[:, None]).tolist()

    assert left_out("cross-camera") == [[True, True, False]] * 2
    assert left_out("all-cameras") == [[True, False, False], [False, False, False]]


def test_data_without_cameras_need_the_all_cameras_protocol(place, capsys):
    for split in ("train", "query", "gallery"):
        for identity in ("ann", "bob"):
            write_images(place / "plain" / split / identity, [len(split)], frames=2, seed=len(split))
            for path in (place / "plain" / split / identity).iterdir():
                path.rename(path.with_name(path.name.replace("_c", "_")))
    plain = {"data.name": "folders", "data.root": str(place / "plain")}
    with pytest.raises(InputError, match=r"none of the 8 queries of folders has a match.*eval.protocol=all-cameras"):
        run(place, plain)
    result = run(place, plain | {"eval.protocol": "all-cameras"})
    assert "folders: 8 of 8 queries have a match among 8, all-cameras" in capsys.readouterr().out
    assert result["protocol"].startswith("all-cameras: ")


def test_queries_without_a_match_are_counted(place, capsys):
    write_images(place / "night" / "query", [200], cameras=(1,), frames=1)
    result = run(place)
    assert (result["queries"], result["queries_without_match"]) == (5, 1)
    assert "night600: 4 of 5 queries have a match among 12, cross-camera" in capsys.readouterr().out


def test_the_result_has_metrics_with_and_without_re_ranking(place):
    result = run(place, rerank=True, features=str(place / "f.npz"))
    f = np.load(place / "f.npz")
    labels = f["query_pids"], f["gallery_pids"], f["query_cameras"], f["gallery_cameras"]
    plain = rank_features(f["query_features"], f["gallery_features"], *labels)
    reranked = rank_metrics(k_reciprocal(f["query_features"], f["gallery_features"]), *labels)
    assert result["mAP"] == pytest.approx(reranked.mAP)
    assert result["targets"]["night600"]["without_rerank"]["mAP"] == pytest.approx(plain.mAP)
    np.testing.assert_allclose(f["average_precision"], reranked.average_precision)
    assert result["rerank"] == {"k1": 20, "k2": 6, "lambda_value": 0.3}
    assert result["targets"]["night600"]["seconds"].keys() == {"features", "ranking", "re-ranking"}
    assert f["query_paths"].tolist() == sorted(map(str, (place / "night/query").iterdir()))
    again = run(place, {"eval.rerank.k1": 3, "eval.rerank.enabled": True, "eval.expand": 2, "eval.flip": True})
    assert again["rerank"]["k1"] == 3
    assert (again["expand"], again["flip"]) == (2, True)
    assert run(place)["rerank"] is None


def test_the_result_describes_its_config_versions_and_groups(place):
    result = json.loads(json.dumps(run(place)))
    assert result["config"]["data"]["root"] == str(place / "night")
    assert result["versions"].keys() >= {"jax", "scipy", "python"}
    target = result["targets"]["night600"]
    assert target["by_camera"]["1"]["mAP"] == pytest.approx(result["mAP"])
    # With a single camera, the table has no rows by camera.
    assert "\n  camera 1" not in full_table(result)
    groups = target["by_brightness"].values()
    assert sum(group["queries"] for group in groups) == 4
    assert np.mean([group["mAP"] for group in groups]) == pytest.approx(result["mAP"])


def forbid(monkeypatch):
    """Make every further embedding fail."""

    def refuse(*_, **__):
        raise AssertionError("embedded again")

    monkeypatch.setattr(Embedder, "__call__", refuse)


def test_features_are_cached_for_the_same_weights_and_images(place, monkeypatch):
    first = run(place)
    forbid(monkeypatch)
    assert run(place, rerank=True)["targets"]["night600"]["without_rerank"]["mAP"] == first["mAP"]
    for change in ({"eval.flip": True}, {"data.cache": "none"}, {"data.cache_dir": str(place / "elsewhere")}):
        with pytest.raises(AssertionError, match="embedded again"):
            run(place, change)
    for options in ({}, {"degradation.preset": "low_noise"}):
        with pytest.raises(AssertionError, match="embedded again"):
            run(place, options, lights=(0.5,))


@pytest.mark.parametrize("change", ["weights", "image", "kept"])
def test_cached_features_are_not_used_if_damaged_or_for_other_weights_or_images(place, monkeypatch, change):
    first = run(place)
    if change == "weights":
        save_random_weights(place / "other", 1)
        (place / "weights").rename(place / "old")
        (place / "other").rename(place / "weights")
    elif change == "image":
        write_images(place / "night" / "query", [100], cameras=(1,), frames=1, seed=5)
    else:
        for path in (place / "cache").glob("features-*"):
            path.write_bytes(path.read_bytes()[:-100])
        # Damaged features are computed again and cached.
        assert run(place)["mAP"] == first["mAP"]
        monkeypatch.setattr(embedding, "CACHE_VERSION", 0)
    forbid(monkeypatch)
    with pytest.raises(AssertionError, match="embedded again"):
        run(place)


def test_a_damaged_cache_does_not_change_the_metrics(place, capsys):
    """Overwrite a part of the decoded images and all features. Both are computed again, with a warning."""
    first = run(place)
    for path in (place / "cache").glob("*.npy"):
        if path.name.startswith("features"):
            path.write_bytes(b"PK\3\4junk")
        else:
            content = bytearray(path.read_bytes())
            # These bytes are pixels behind the header.
            content[1000:3000] = bytes(2000)
            path.write_bytes(content)
    capsys.readouterr()
    again = run(place)
    assert again["targets"]["night600"]["by_brightness"] == first["targets"]["night600"]["by_brightness"]
    warnings = capsys.readouterr().err.splitlines()
    assert sum("decoding again" in line for line in warnings) == 2
    assert sum("embedding again" in line for line in warnings) == 2
    # Queries and gallery have a file of images and a file of features each.
    assert len(warnings) == 4


def test_flip_averages_the_features_of_an_image_and_its_mirror_image(place):
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 16, 3), np.uint8)
    plain, flipped = (Embedder.load(place / "weights", flip=flip) for flip in (False, True))
    expected = (plain(images) + plain(images[:, :, ::-1])) / 2
    np.testing.assert_allclose(flipped(images), expected, atol=1e-5)
    np.testing.assert_allclose(flipped(images[:, :, ::-1]), flipped(images), atol=1e-5)


def test_illumination_gives_a_curve_a_table_and_a_plot(place):
    result = run(place, lights=(1.0, 0.1))
    curve = result["targets"]["night600"]["illumination"]
    assert [row["light"] for row in curve] == [1, 0.1]
    assert (place / "r-illumination.png").read_bytes().startswith(b"\x89PNG")
    assert (
        run(place, {"data.cache": "none"}, lights=(0.1,))["targets"]["night600"]["illumination"][0]["mAP"]
        == curve[1]["mAP"]
    )
    assert "  light 0.1, maet" in full_table(result)


def test_less_light_gives_darker_images():
    """Check too that full light without noise keeps an image, and that its noise does not depend on the batch."""
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 16, 3), np.uint8)
    # A converter of 24 bits hides its own rounding.
    clean = {"shot": (0.0, 0.0), "bits": (24,), "gamma": (2.0, 2.0)}
    np.testing.assert_allclose(darkener(1.0, clean, 0)(0, images).astype(int), images, atol=1)
    means = [darkener(light, {}, 0)(0, images).mean() for light in (1, 0.5, 0.2, 0.05)]
    assert means == sorted(means, reverse=True)
    darken = darkener(0.2, {"preset": "low_noise"}, 0)
    np.testing.assert_array_equal(np.concatenate([darken(0, images[:4]), darken(4, images[4:])]), darken(0, images))
    assert (darkener(0.2, {"preset": "low_noise"}, 1)(0, images) != darken(0, images)).any()


@pytest.mark.parametrize("text", ["dark", "0.5,", "0", "1.5", "nan", "-1,1"])
def test_an_invalid_light_intensity_is_refused(text):
    with pytest.raises(InputError, match="give intensities above 0 and at most 1"):
        read_lights(text)


def test_light_intensities_are_sorted_and_repeated_ones_removed():
    assert read_lights(".05,1,0.5, 1") == (1, 0.5, 0.05)
    assert read_lights("") == ()


def test_invalid_options_are_refused_before_images_are_read(place):
    for options, message in (
        ({"eval.protocol": "market"}, "eval.protocol is 'market'; choose one of cross-camera, all-cameras"),
        ({"eval.rerank.k1": 0}, "eval.rerank.k1 is 0; it must be positive"),
        ({"eval.rerank.lambda_value": 2.0}, "eval.rerank.lambda_value is 2.0; it must lie in 0..1"),
        ({"eval.expand": -1}, "eval.expand is -1"),
    ):
        with pytest.raises(InputError, match=message):
            run(place, options)
    (place / "folder.npz").mkdir()
    for name, message in (("folder.npz", r"--features .* is a folder"), ("f.csv", r"--features .*: name a \.npz file")):
        with pytest.raises(InputError, match=message):
            run(place, features=str(place / name))


def test_several_test_sets_have_separate_results_and_a_mean(place):
    write_night(place / "other", frames=1)
    two = {"eval.data.name": "night600,market1501", "eval.data.root": f"{place / 'night'},{place / 'other'}"}
    result = run(place, two, features=str(place / "f.npz"), lights=(0.5,))
    assert read_targets(read_options(small_config(place, **two))).keys() == result["targets"].keys()
    means = [row["mAP"] for row in result["targets"].values()]
    assert (result["mAP"], result["queries"]) == (pytest.approx(np.mean(means)), 8)
    assert "mean of 2 data sets" in full_table(result)
    assert {"night600/query_features", "market1501/gallery_pids"} <= set(np.load(place / "f.npz").files)


def test_queries_of_the_same_brightness_are_all_counted(place):
    for path in (place / "night/query").iterdir():
        Image.new("RGB", (20, 40), "gray").save(path)
    groups = run(place)["targets"]["night600"]["by_brightness"].values()
    assert sum(group["queries"] for group in groups) == 4


def test_metrics_can_be_computed_again_from_the_exported_features(place):
    """Compute them by both protocols, which need the exported views of queries and gallery."""
    for protocol in ("cross-camera", "all-cameras"):
        result = run(place, {"eval.protocol": protocol}, features=str(place / "f.npz"))
        f = np.load(place / "f.npz")
        labels = f["query_pids"], f["gallery_pids"], f["query_views"], f["gallery_views"]
        assert rank_features(f["query_features"], f["gallery_features"], *labels).mAP == pytest.approx(result["mAP"])
