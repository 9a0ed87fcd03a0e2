"""nrsrd compare evaluates runs on the same data, gives intervals of their differences, and records their origin."""

import csv
import dataclasses
import json
import math
import shutil

import jax
import numpy as np
import pytest
from people import run, small_config, small_model, write_night
from PIL import Image

from nrsrd_jax import config as configuration
from nrsrd_jax.checkpoint import load, save_weights
from nrsrd_jax.command import read_overrides, split_config_arguments
from nrsrd_jax.errors import InputError
from nrsrd_jax.options import read_options
from nrsrd_jax.retrieval.comparison import compare, paired_differences
from nrsrd_jax.retrieval.comparison_tables import tables
from nrsrd_jax.retrieval.ranking import RankMetrics
from nrsrd_jax.retrieval.result import evaluate_run
from nrsrd_jax.sharding import make_mesh

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Make two data sets, runs "a" and "b" of different image sizes, and bare checkpoints "twin" and "c".

    "twin" has the weights of "a".
    """
    place = tmp_path_factory.mktemp("compare")
    write_night(place / "night", frames=1)
    # These people are pure noise, so models disagree about whose match comes first.
    rng = np.random.default_rng(0)
    for folder, camera in (("query", 1), ("bounding_box_test", 2)):
        for identity in range(110, 122):
            pixels = rng.integers(0, 256, (40, 20, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(place / "night" / folder / f"{identity:04d}_c{camera}_000000.jpg")
    write_night(place / "other", frames=1)
    for name, size in (("a", (32, 16)), ("b", (48, 32))):
        home = place / "runs" / name
        home.mkdir(parents=True)
        configuration.save_config(read_options(small_config(place, image_size=size)), home / "config.json")
        save_weights(home / "checkpoints/7", *small_model(1, size), {})
    description, variables = load(place / "runs/a", make_mesh())
    description = dataclasses.replace(description, provenance={"source": {"file": "elsewhere"}})
    save_weights(place / "runs/twin", description, variables, {})
    save_weights(place / "runs/c", description, jax.tree.map(lambda x: x + rng.normal(0, 0.1, x.shape), variables), {})
    return place


@pytest.fixture
def here(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def runs(place, *names):
    return [str(place / "runs" / name) for name in names]


def metrics(precision, first):
    return RankMetrics(np.array(precision, float), np.array(precision, float), np.array(first), 5)


def test_differences_by_hand():
    """b ranks a match first for three queries where a does not, and loses one. A query without a match is left out."""
    a = metrics([0.5, 0.5, 0.5, 1, 1, math.nan], [2, 2, 2, 1, 1, 0])
    b = metrics([1, 1, 1, 0.5, 1, math.nan], [1, 1, 1, 2, 1, 0])
    (found,) = paired_differences({"a": [a], "b": [b]}, None, 1000, 0)
    assert (found["a"], found["b"], found["better"], found["worse"]) == ("a", "b", 3, 1)
    assert (found["queries"], found["resampled"]) == (5, 5)
    np.testing.assert_allclose((found["mAP"], found["rank1"]), (0.2, 0.4))
    assert found["low"] < found["mAP"] < found["high"]
    assert found["rank1_low"] < found["rank1"] < found["rank1_high"]
    (turned,) = paired_differences({"b": [b], "a": [a]}, None, 1000, 0)
    for name, end in (("mAP", "mAP"), ("low", "high"), ("rank1_high", "rank1_low")):
        np.testing.assert_allclose(turned[name], -found[end])
    assert (turned["better"], turned["worse"]) == (1, 3)


def test_by_identity_all_queries_of_a_person_are_resampled_together():
    """All queries of a person change alike here, so intervals over queries are too narrow."""
    a = metrics([0.5] * 40, [2] * 40)
    b = metrics(np.repeat([0.2, 0.9, 0.6, 0.8], 10), [2] * 40)
    (by_query,) = paired_differences({"a": [a], "b": [b]}, None, 1000, 0)
    (by_person,) = paired_differences({"a": [a], "b": [b]}, np.repeat([3, 1, 8, 5], 10), 1000, 0)
    assert by_person["mAP"] == by_query["mAP"]
    # With ten equal queries per person, the interval over people is √10 times as wide.
    assert by_person["high"] - by_person["low"] > 2 * (by_query["high"] - by_query["low"])
    assert (by_query["resampled"], by_person["resampled"]) == (40, 4)


def test_the_trainings_of_a_method_are_resampled_too():
    """If two seeds disagree, the interval is wide although all queries of a training change alike."""
    a = [metrics([0.5] * 30, [1] * 30)] * 2
    b = [metrics([0.4] * 30, [1] * 30), metrics([0.8] * 30, [1] * 15 + [2] * 15)]
    (found,) = paired_differences({"a": a, "b": b}, None, 1000, 0)
    np.testing.assert_allclose([found["low"], found["mAP"], found["high"]], [-0.1, 0.1, 0.3], atol=1e-12)
    # The first training loses no query and the second fifteen.
    assert (found["trainings"], found["queries"], found["worse"]) == (2, 30, 7.5)
    (same,) = paired_differences({"a": a[:1], "b": b[:1]}, None, 1000, 0)
    np.testing.assert_allclose([same["low"], same["high"]], -0.1)


def test_a_method_of_several_trainings_is_one_row_of_means(place, here):
    one, other, third = runs(place, "a", "b", "c")
    result, _ = compare([f"x={one},{third}", f"y={other},{place / 'runs/twin'}"], resamples=200)
    alone, _ = compare([one, third], resamples=200)
    assert [row["run"] for row in result["rows"]] == ["x", "y"]
    assert result["rows"][0]["mAP"] == pytest.approx(np.mean([row["mAP"] for row in alone["rows"]]))
    assert len(result["runs"]) == 4
    assert any("with 2 trainings of each" in line for line in tables(result))
    for given, message in (
        ([f"x={one},{third}", other], "methods have 1 and 2 runs"),
        ([f"x={one}", f"x={third}"], "x is given twice; give different ones"),
        ([f"b={one}", other], "two methods are called b"),
        ([f"={one}", other], "is neither a run nor NAME=RUN"),
        ([f"x={one}", f"y={one}"], "are the same checkpoint"),
    ):
        with pytest.raises(InputError, match=message):
            compare(given)
    with pytest.raises(InputError, match="--flips compares single runs"):
        compare([f"x={one},{third}", f"y={other},{place / 'runs/twin'}"], flips="flips.csv")


def test_runs_of_different_image_sizes_are_compared_on_the_data_of_the_first_run(place, here):
    result, files = compare(runs(place, "a", "b", "c"), flips="flips.csv", resamples=200)
    assert [file.name for file in files] == ["compare.json", "compare.png", "flips.csv"]
    assert json.loads((here / "compare.json").read_text()) == json.loads(json.dumps(result))
    assert (here / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert [(row["run"], row["data"]) for row in result["rows"]] == [(name, "night600") for name in "abc"]
    assert [row["queries"] for row in result["rows"]] == [4 + 12] * 3
    assert [(each["a"], each["b"]) for each in result["differences"]] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [each["image_size"] for each in result["runs"]] == [[32, 16], [48, 32], [32, 16]]
    assert "training" not in result["runs"][2]["selected_by"]
    assert result["protocol"].startswith("cross-camera")
    assert result["interval"]["resamples"] == 200
    assert result["versions"]["jax"]
    # Each run has its own features, so the shared config names none.
    own = {"feature", "flip", "normalize"}
    assert all(own <= each.keys() for each in result["runs"])
    assert not own & result["config"]["eval"].keys()
    score = {row["run"]: row for row in result["rows"]}
    for each in result["differences"]:
        for name in ("mAP", "rank1"):
            assert each[name] == pytest.approx(score[each["b"]][name] - score[each["a"]][name])
        assert each["better"] - each["worse"] == pytest.approx(each["rank1"] * each["queries"])
    alone, _ = evaluate_run("", str(place / "runs/b"), str(here / "alone.json"))
    assert alone["mAP"] == pytest.approx(score["b"]["mAP"])
    assert alone["targets"]["night600"]["query_pixels_sha256"] == score["b"]["query_pixels_sha256"]

    with open(here / "flips.csv", encoding="utf-8", newline="") as file:
        flips = list(csv.DictReader(file))
    lost = {each["b"]: each["better"] + each["worse"] for each in result["differences"] if each["a"] == "a"}
    assert flips
    for name in ("b", "c"):
        ranks = [(row["rank of first match, a"] == "1", row[f"rank of first match, {name}"] == "1") for row in flips]
        assert sum(one != other for one, other in ranks) == lost[name]
    assert flips[0]["path"].startswith(str(place / "night/query"))
    assert 0 < float(flips[0]["AP, c"]) <= 1


def test_checkpoints_with_equal_weights_have_zero_differences(place, here):
    result, _ = compare(runs(place, "a", "twin"), flips="flips.csv", resamples=200, by="identity")
    (same,) = result["differences"]
    assert {same[name] for name in ("mAP", "low", "high", "rank1", "rank1_low", "rank1_high")} == {0}
    assert same["better"] == same["worse"] == 0
    assert (here / "flips.csv").read_text().startswith("data,path,identity,camera,")
    assert (here / "flips.csv").read_text().count("\n") == 1
    assert (result["interval"]["by"], same["resampled"]) == ("identity", 16)
    assert result["runs"][0]["weights_sha256"] == result["runs"][1]["weights_sha256"]


def test_several_data_sets_give_a_matrix_of_runs_and_data_sets(place, here):
    both = {"eval.data.name": "night600,night600", "eval.data.root": f"{place / 'night'},{place / 'other'}"}
    result, _ = compare(runs(place, "a", "b"), overrides=both, resamples=200)
    assert [each["data"] for each in result["differences"]] == ["night600-1", "night600-2"]
    lines = tables(result)
    matrix = lines[next(i for i, line in enumerate(lines) if line.startswith("mAP")) :]
    assert matrix[0].split() == ["mAP", "night600-1", "night600-2", "mean"]
    values = [100 * row["mAP"] for row in result["rows"] if row["run"] == "b"]
    assert matrix[2].split() == ["b", *(f"{x:.1f}" for x in (*values, np.mean(values)))]
    assert any(line.startswith("b − a, night600-2") for line in lines)


def test_runs_of_the_same_name_are_shown_by_their_paths(place, here):
    shutil.copytree(place / "runs/c", here / "x/a")
    result, _ = compare([*runs(place, "a"), "x/a"], resamples=200)
    assert [each["run"] for each in result["runs"]] == [str(place / "runs/a"), "x/a"]
    steps, _ = compare([*runs(place, "b/checkpoints/7"), "x/a"], resamples=200)
    assert [each["run"] for each in steps["runs"]] == ["b/7", "a"]


def test_a_named_file_is_replaced_and_a_link_in_the_folder_is_not_followed(place, here):
    (here / "kept.json").write_text("precious")
    (here / "compare.json").symlink_to("kept.json")
    with pytest.raises(InputError, match=r"compare.json is a symbolic link"):
        compare(runs(place, "a", "c"), resamples=200)
    assert (here / "kept.json").read_text() == "precious"
    _, files = compare(runs(place, "a", "c"), "kept.json", resamples=200)
    assert json.loads((here / "kept.json").read_text())["differences"]
    assert files[1].name == "kept.png"
    # compare.json is still a link to kept.json.
    with pytest.raises(InputError, match="two files to read or write are the same"):
        compare(runs(place, "a", "c"), "kept.json", flips="compare.json")


def test_bad_input_is_named_before_a_model_is_loaded(place, here, monkeypatch):
    # Loading a model would now raise a TypeError.
    monkeypatch.setattr("nrsrd_jax.retrieval.comparison.load_embedder", None)
    (here / "new").mkdir()
    configuration.save_config(read_options(small_config(place)), here / "new/config.json")
    copy = here / "again"
    copy.symlink_to(place / "runs/a")
    alone = write_night(here / "alone", frames=1)
    for path in (alone / "query").glob("010[1-9]*"):
        path.unlink()
    unmatched = write_night(here / "unmatched", frames=1)
    for path in (unmatched / "bounding_box_test").glob("*_c2_*"):
        path.unlink()
    cases = [
        (runs(place, "a"), {}, "give two or more runs"),
        ([], {}, "give two or more runs"),
        ([*runs(place, "a"), "nowhere"], {}, "nowhere does not exist"),
        ([*runs(place, "a"), "new"], {}, "new is a run without a checkpoint yet"),
        (runs(place, "a", "a"), {}, "are the same checkpoint"),
        ([*runs(place, "a"), str(copy)], {}, "are the same checkpoint"),
        (runs(place, "a", "a/checkpoints/7"), {}, "are the same checkpoint"),
        (runs(place, "a", "c"), {"data.root": str(here / "gone")}, "no folder .*gone"),
        (runs(place, "a", "c"), {"data.root": str(unmatched)}, "none of the 4 queries of night600 has a match"),
        (runs(place, "a", "c"), {"data.name": "bright"}, "has no queries to evaluate with"),
        (runs(place, "a", "c"), {"data.root": str(alone)}, "night600 has 1 query with a match"),
        (runs(place, "a", "c"), {"eval.protocol": "any"}, "eval.protocol is 'any'"),
    ]
    for given, overrides, message in cases:
        with pytest.raises(InputError, match=message) as error:
            compare(given, overrides=overrides)
        assert "\n" not in str(error.value)
    assert not (here / "compare.json").exists()


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_config_options_may_stand_between_the_runs():
    arguments = ["a", "--config", "demo:nra", "b", "--config.data.root", "x", "--seed", "3", "--config.eval.flip=True"]
    ours, rest = split_config_arguments(arguments)
    assert rest == ["a", "b", "--seed", "3"]
    config, overrides = read_overrides(ours)
    assert overrides == {"data.root": "x", "eval.flip": True}
    assert (config.model.norm_ratio, config.data.root, config.eval.flip) == (True, "x", True)
    assert read_overrides(ours[2:]) == (None, overrides)


def test_the_command_says_what_differs_and_what_is_wrong(place, here):
    """Options stand between the runs, and --config chooses the data."""
    data = f"--config.data.root={place / 'night'}"
    done = run(
        "-m", "nrsrd_jax.cli", "compare", runs(place, "a")[0], "--by", "identity", runs(place, "c")[0],
        "--config", "night600:baseline", data, f"--config.data.cache_dir={place / 'cache'}", "--resamples", "100",
        "--output", here / "out.json",
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert any(line.startswith("c − a") for line in lines)
    assert any("16 people of night600, resampled 100 times" in line for line in lines)
    assert lines[-1] == f"written to {here / 'out.json'}, {here / 'out.png'}"
    assert json.loads((here / "out.json").read_text())["config"]["model"]["backbone"] == "vit_base_ics"


def test_only_files_of_earlier_comparisons_are_replaced(place, here):
    (here / "mine.png").write_text("mine")
    with pytest.raises(InputError, match=r"mine.png exists without a comparison beside it"):
        compare(runs(place, "a", "b"), output="mine.json")
    for name in ({"output": str(place / "runs/a/config.json")}, {"flips": str(place / "runs/a/config.json")}):
        with pytest.raises(InputError, match="belongs to a run or a checkpoint"):
            compare(runs(place, "a", "b"), **name)
    assert (here / "mine.png").read_text() == "mine"


def test_a_comparison_in_the_folder_of_a_run_can_be_repeated(place, here):
    shutil.copytree(place / "runs/a", here / "a")
    for _ in range(2):
        compare(runs(place, "a", "c"), output="a/compare.json", flips="a/flips.csv", resamples=10)
    with pytest.raises(InputError, match=r"config\.json belongs to a run or a checkpoint"):
        compare(runs(place, "a", "c"), output="a/compare.json", flips="a/config.json")
