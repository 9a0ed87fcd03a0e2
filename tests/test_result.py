"""Test that no result is lost or written through a link, and that tables name what they describe."""

import copy
import json
import shutil

import numpy as np
import pytest
from people import small_config, small_model, write_images, write_night

from nrsrd_jax.checkpoint import save_weights
from nrsrd_jax.errors import InputError
from nrsrd_jax.retrieval.embedding import Embedder
from nrsrd_jax.retrieval.result import evaluate_run, full_table
from nrsrd_jax.retrieval.result_file import choose_file, refuse_links

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "weights"
    save_weights(folder, *small_model(1), {})
    return folder


@pytest.fixture
def place(tmp_path, weights):
    """Write a data set to night/ and a checkpoint with random weights to weights/. Return their folder."""
    write_night(tmp_path / "night", frames=1)
    shutil.copytree(weights, tmp_path / "weights")
    return tmp_path


def evaluate(place, options=(), **arguments):
    return evaluate_run("", str(place / "weights"), "", small_config(place, **dict(options)), **arguments)


def kept(folder):
    """Return the content of every result file by its name."""
    return {path.name: json.loads(path.read_text()) for path in folder.glob("result*.json")}


def test_a_second_evaluation_keeps_earlier_results(place):
    """Evaluate with another data set, protocol or option. result.json stays that of the default evaluation."""
    write_night(place / "other", frames=1)
    write_images(place / "other/query", [100], cameras=(1,), frames=1, seed=9)
    changes = [
        ({}, {}),
        ({"data.root": str(place / "other")}, {}),
        ({"eval.protocol": "all-cameras"}, {}),
        ({"eval.flip": True}, {}),
        ({"eval.expand": 2}, {}),
        ({}, {"rerank": True}),
        ({"eval.rerank.k1": 5}, {"rerank": True}),
        ({}, {"lights": (0.5,)}),
    ]
    written = []
    for options, arguments in changes:
        result, files = evaluate(place, options, **arguments)
        written.append(files[0].name)
        assert json.loads(files[0].read_text())["mAP"] == result["mAP"]
    assert len(set(written)) == len(changes)
    assert set(kept(place / "weights")) == set(written)
    assert written[0] == "result.json"
    words = ["night600", "all-cameras", "flip", "expand2", "reranked", "reranked", "lights"]
    for name, word in zip(written[1:], words, strict=True):
        assert name.startswith(f"result-{word}-")
    plots = [path.name for path in (place / "weights").glob("*.png")]
    assert plots == [written[-1].replace(".json", "-illumination.png")]

    before = kept(place / "weights")["result.json"]
    evaluate(place)
    again = kept(place / "weights")
    # The same evaluation replaces its own result.
    assert set(again) == set(written)
    assert again["result.json"]["mAP"] == before["mAP"]


RESULT = {
    "mAP": 0.5, "weights_sha256": "a", "protocol": "cross-camera: …", "rerank": None, "flip": False, "expand": 0,
    "lights": [], "trained_with": {"eval.protocol": "cross-camera", "data.root": "night", "eval.data.name": ""},
    "targets": {"night600": {"query_list_sha256": "q", "gallery_list_sha256": "g"}},
    "data": {"name": "night600", "root": "night", "protocol": "", "exclude": ""},
    "config": {"eval": {"protocol": "cross-camera"}, "train": {"precision": "float32"}, "degradation": {}},
}  # fmt: skip
OWN_LISTS = {"train": "t", "night600/query": "q", "night600/gallery": "g"}


def record(folder, trained_data=OWN_LISTS, **changes):
    result = copy.deepcopy(RESULT) | changes
    path = choose_file(folder / "result.json", result, trained_data)
    path.write_text(json.dumps(result))
    return path.name


def test_results_of_earlier_weights_are_kept(tmp_path):
    """Evaluate other weights of the run, as after more training. result.json then holds their result."""
    assert record(tmp_path) == record(tmp_path, weights_sha256="b") == "result.json"
    assert sorted(x["weights_sha256"] for x in kept(tmp_path).values()) == ["a", "b"]
    assert kept(tmp_path)["result.json"]["weights_sha256"] == "b"
    assert record(tmp_path, weights_sha256="c") == "result.json"
    assert sorted(x["weights_sha256"] for x in kept(tmp_path).values()) == ["a", "b", "c"]


def test_result_json_is_for_the_test_set_of_the_run(tmp_path):
    """Check that other lists get another file name, also if they come first, and that moved data count as the same."""
    other = {"targets": {"market1501": {"query_list_sha256": "x", "gallery_list_sha256": "g"}}}
    assert record(tmp_path, **other).startswith("result-market1501-")
    assert record(tmp_path) == "result.json"
    assert record(tmp_path, data=RESULT["data"] | {"root": "moved"}) == "result.json"
    assert len(kept(tmp_path)) == 2


def test_the_same_file_names_with_other_pixels_are_another_test_set(tmp_path):
    """Use two versions with the same lists, as MSMT17 has them."""
    for version, root in (("1", "night"), ("2", "elsewhere")):
        pixels = {"night600": RESULT["targets"]["night600"] | {"query_pixels_sha256": version}}
        record(tmp_path, targets=pixels, data=RESULT["data"] | {"root": root})
    found = {x["targets"]["night600"]["query_pixels_sha256"]: name for name, x in kept(tmp_path).items()}
    assert found["1"] == "result.json"
    assert found["2"].startswith("result-night600-")


@pytest.mark.parametrize("text", ["", "my notes", "[" * 100_000, '{"targets": 1}', '{"mAP": 0.5}'])
def test_a_result_json_that_cannot_be_compared_is_kept_under_another_name(tmp_path, text):
    (tmp_path / "result.json").write_text(text)
    assert record(tmp_path) == "result.json"
    (earlier,) = tmp_path.glob("result-earlier-*.json")
    assert earlier.read_text() == text


@pytest.mark.parametrize("hostile", [None, "text", {"night600/query": ["list"]}])
def test_any_training_record_in_a_checkpoint_is_accepted(tmp_path, hostile):
    assert record(tmp_path, hostile, trained_with=hostile).startswith("result")


def test_a_result_is_never_written_through_a_link(place, monkeypatch):
    """Try all kinds of default names, with and without a target. The error comes before any image is embedded."""
    victim = place / "victim"
    victim.write_text("mine")
    monkeypatch.setattr(Embedder, "__call__", lambda *_, **__: pytest.fail("embedded"))
    for name in ("result.json", "result-flip-0123abcd.json", "result-lights-0123abcd-illumination.png"):
        for target in (victim, place / "absent"):
            (place / "weights" / name).symlink_to(target)
            with pytest.raises(InputError, match=f"{name} is a symbolic link; remove it, or name .* --output"):
                evaluate(place)
            (place / "weights" / name).unlink()
    # Without links nothing is refused.
    refuse_links(place / "weights/result.json")
    assert victim.read_text() == "mine"
    assert not (place / "absent").exists()


def test_a_link_is_followed_only_if_the_user_names_it(place, monkeypatch):
    for name in ("named.json", "features.npz", "victim"):
        (place / f"real-{name}").touch()
    (place / "r.json").symlink_to(place / "real-named.json")
    (place / "f.npz").symlink_to(place / "real-features.npz")
    config, weights = small_config(place), str(place / "weights")
    evaluate_run("", weights, str(place / "r.json"), config, features=str(place / "f.npz"))
    assert (place / "r.json").is_symlink()
    assert json.loads((place / "real-named.json").read_text())["queries"] == 4
    assert np.load(place / "real-features.npz")["query_pids"].shape == (4,)
    (place / "out").mkdir()
    monkeypatch.setattr(Embedder, "__call__", lambda *_, **__: pytest.fail("embedded"))
    report = {"report": str(place / "out")}
    for link, options in (("r-illumination.png", {"lights": (0.5,)}), ("out/index.html", report)):
        (place / link).symlink_to(place / "real-victim")
        with pytest.raises(InputError, match=r"is a symbolic link"):
            evaluate_run("", weights, str(place / "r.json"), config, **options)
    assert (place / "real-victim").read_bytes() == b""


def test_the_table_lists_groups_of_queries_below_their_data_set(place):
    """Check that re-ranked numbers by camera and brightness are marked and come before those without re-ranking."""
    write_images(place / "night/query", [100], cameras=(2,), frames=1)
    result, _ = evaluate(place, rerank=True, lights=(0.5,))
    lines = full_table(result).splitlines()
    plain = next(i for i, line in enumerate(lines) if line.startswith("night600, not re-ranked"))
    groups = [i for i, line in enumerate(lines) if line.startswith("  ")]
    assert lines[1].startswith("night600, re-ranked")
    assert groups == list(range(2, plain - 1))
    assert all("re-ranked" in lines[i] for i in groups)
    assert "  camera 2 (1 query), re-ranked" in lines[groups[1]]
    ours = result["targets"]["night600"]["by_camera"]["1"]["mAP"]
    assert f"{100 * ours:.1f}" in lines[groups[0]]


def test_a_gallery_of_one_person_gives_a_warning(place):
    for path in (place / "night/bounding_box_test").iterdir():
        if not path.name.startswith("0100"):
            path.unlink()
    result, files = evaluate(place)
    assert result["rank1"] == 1
    warning = "night600: all 2 gallery images show one person, so that no ranking can be wrong"
    assert result["warnings"][0].startswith(warning)
    assert full_table(result).splitlines()[-1].startswith(f"warning: {warning}")
    assert json.loads(files[0].read_text())["warnings"] == result["warnings"]
    write_images(place / "night/bounding_box_test", [101], cameras=(1,), frames=1)
    assert evaluate(place)[0]["warnings"] == []


def test_features_of_two_models_can_be_joined(place):
    """Scale the features of each model to its weight, as EDA does. The same model twice changes no rank."""
    result, _ = evaluate(place)
    both, files = evaluate(place, also=[str(place / "weights")], weights=[1.0, 0.5])
    assert both["mAP"] == pytest.approx(result["mAP"])
    assert (both["weight"], both["also"][0]["weight"]) == (1.0, 0.5)
    assert "-also-" in files[0].name
    save_weights(place / "other", *small_model(2), {})
    # The features of the first model have almost no weight, so the second decides alone.
    other, _ = evaluate(place, also=[str(place / "other")], weights=[1e-6, 1.0])
    assert other["mAP"] == pytest.approx(evaluate_run("", str(place / "other"), "", small_config(place))[0]["mAP"])
    with pytest.raises(InputError, match="--weights has 1 numbers; give 2"):
        evaluate(place, also=[str(place / "other")], weights=[1.0])
    with pytest.raises(InputError, match="--weights weighs the features of several models: give --also too"):
        evaluate(place, weights=[5.0])
    with pytest.raises(InputError, match="leave out --onnx, --report and --illumination"):
        evaluate(place, also=[str(place / "other")], lights=(0.5,))
