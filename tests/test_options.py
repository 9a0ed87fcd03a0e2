"""Test that every option has a description, a type and a range, and that wrong values are refused."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from people import ROOT, run

from nrsrd_jax.config import VARIANTS, differences, flatten, get_config, load_config, save_config
from nrsrd_jax.data.readers import LAYOUTS
from nrsrd_jax.errors import InputError
from nrsrd_jax.lowlight import PRESETS
from nrsrd_jax.models import MODELS
from nrsrd_jax.models.attention import NormRatio
from nrsrd_jax.options import OPTIONS, NormRatioOptions, Options, read_options
from nrsrd_jax.train import describe

pytestmark = pytest.mark.slow

RANGED = [option for option in OPTIONS.values() if option.range]


def with_option(name, value):
    config = get_config()
    config.update_from_flattened_dict({name: value})
    return config


def changed(option):
    """Return a valid value that differs from the option's default."""
    others = {
        bool: not option.default,
        str: next((choice for choice in option.choices if choice != option.default), "other"),
        int: 3,
        float: 0.25,
        tuple[int, int]: (32, 16),
        tuple[int, ...]: (8,),
        tuple[float, float]: (0.5, 0.75),
    }
    own = {"data.mean": "dataset", "data.std": "dataset", "augment.erasing_fill": "0.5,0.5,0.5", "optim.lead": 1}
    return own.get(option.name, others[option.kind])


def read_alone(option):
    """Return two sets of options that differ in this option alone. Other options are set as this one needs them."""
    needs = {"eval.data.root": {"eval.data.name": "bright"}, "eval.data.protocol": {"eval.data.name": "bright"}}
    needs |= {"aux.enabled": {"teacher.enabled": False}}
    needs |= {"model.sie_factor": {"model.sie": True, "teacher.enabled": False, "aux.enabled": False}}
    needs |= {"model.sie": {"teacher.enabled": False, "aux.enabled": False}}
    # A pretraining refuses what needs labels.
    unlabelled = {"teacher.enabled": False, "aux.enabled": False, "model.norm_ratio": False, "optim.name": "adamw"}
    pretraining = unlabelled | {"dino.enabled": True}
    needs |= {name: pretraining for name in OPTIONS if name.startswith("dino.")}
    needs |= {"dino.enabled": unlabelled, "data.include": pretraining}
    needs |= {"dino.temperature": pretraining | {"dino.temperature_epochs": 1}}
    base, config = get_config(), get_config()
    for each in (base, config):
        each.update_from_flattened_dict(needs.get(option.name, {}))
    config.update_from_flattened_dict({option.name: changed(option)})
    return read_options(base), read_options(config)


def test_every_option_is_described_by_a_sentence():
    for option in OPTIONS.values():
        assert re.fullmatch(r"\S.{10,}[.]", option.text), option.name


def test_every_default_is_valid():
    for variant in VARIANTS:
        assert read_options(get_config(variant)).variant == variant
    assert read_options(get_config()) == Options()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_an_error_for_a_value_out_of_range_names_the_option_and_the_range(data):
    option = data.draw(st.sampled_from(RANGED))
    if option.choices:
        value = data.draw(
            # A surrogate or NUL is refused as text, with another message.
            st.text(st.characters(exclude_categories=["Cs"]), max_size=9).filter(
                lambda text: text not in option.choices and "\0" not in text
            )
        )
    else:
        whole = option.kind is int
        below = {"max_value": -1 if whole else -1e-300} if option.low is not None else {"max_value": 0}
        numbers = [st.integers(-(2**62), below["max_value"]) if whole else st.floats(-1e300, below["max_value"])]
        top = option.high if option.high is not None else option.below
        if top is not None:
            numbers.append(
                st.integers(top + 1, 2**62)
                if whole
                else st.floats(top, 1e300).filter(lambda number: number > top or option.below is not None)
            )
        value = data.draw(st.one_of(numbers))
    with pytest.raises(InputError) as refused:
        read_options(with_option(option.name, value))
    message = str(refused.value)
    assert message.startswith(f"{option.name} is {value!r}; ")
    allowed = ", ".join(option.choices) if option.choices else option.range
    assert message.endswith(allowed)


@pytest.mark.parametrize(("name", "edges"), [
    ("train.epochs", (1,)), ("optim.warmup_epochs", (0,)), ("train.seed", (0, 2**32 - 1)), ("augment.flip", (0.0, 1.0)),
    ("model.drop_path", (0.0, 0.999)), ("optim.lr", (1e-300,)),
])  # fmt: skip
def test_the_ends_of_a_range_are_valid(name, edges):
    for value in edges:
        assert flatten(read_options(with_option(name, value)))[name] == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_numbers_must_be_finite(value):
    for name in ("optim.lr", "loss.distill", "optim.warmup_factor"):
        with pytest.raises(InputError, match=f"{name} is {value}; it must be a finite number"):
            read_options(with_option(name, value))


@pytest.mark.parametrize(("name", "value", "words"), [
    ("image_size", (32.0, 16), "two whole numbers"),
    ("image_size", (32,), "two whole numbers"),
    ("degradation.gamma", (2.0, "a"), "two finite numbers"),
    ("degradation.gamma", (2.0, float("inf")), "two finite numbers"),
    ("degradation.bits", (1.5,), "whole numbers"),
    ("train.epochs", True, "a whole number"),
    ("train.seed", 2**70, "a whole number of less than 64 bits"),
    ("data.root", "a\0b", "a text that a file name can hold"),
])  # fmt: skip
def test_a_value_of_the_wrong_type_is_refused(name, value, words):
    with pytest.raises(InputError, match=re.escape(f"{name} is {value!r}; it must be {words}")):
        read_options(with_option(name, value))


def test_a_group_of_options_set_to_none_is_refused():
    config = get_config()
    config.data = None
    with pytest.raises(InputError, match=r"the config sets data, which is not an option"):
        read_options(config)


@pytest.mark.parametrize(("options", "message"), [
    ({"aux.enabled": False}, "teacher.enabled needs aux.enabled"),
    ({"aux.enabled": False, "teacher.enabled": False, "loss.consistency": 1.0}, "loss.consistency needs aux.enabled"),
    ({"aux.enabled": False, "teacher.enabled": False, "aux.curriculum_epochs": 1}, "no effect without aux.enabled"),
    ({"aux.dark_root": "x", "aux.curriculum_epochs": 1}, "no effect with aux.dark_root, whose images are already dark"),
    ({"aux.curriculum_epochs": 120}, "aux.curriculum_epochs is 120, but train.epochs is 120; lower it"),
    ({"aux.curriculum_epochs": -1}, "aux.curriculum_epochs is -1"),
    ({"loss.consistency": -0.1}, "loss.consistency is -0.1"),
    ({"eval.data.root": "x"}, "need eval.data.name"),
    ({"data.std": "0,0,0"}, "data.std is '0,0,0'; choose half, dataset or three numbers in 1e-06..1 like"),
])  # fmt: skip
def test_options_that_do_not_fit_together_are_refused(options, message):
    config = get_config()
    config.update_from_flattened_dict(options)
    with pytest.raises(InputError, match=message) as error:
        read_options(config)
    assert "\n" not in str(error.value)


def test_only_resumable_options_may_change_on_resume():
    for option in OPTIONS.values():
        before, after = read_alone(option)
        expected = [f"{option.name}: {flatten(before)[option.name]} -> {changed(option)}"]
        assert differences(before, after) == ([] if option.resumable else expected)
    assert {"train.remat", "data.root"} <= {option.name for option in OPTIONS.values() if option.resumable}
    assert not {"train.epochs", "optim.lr"} & {option.name for option in OPTIONS.values() if option.resumable}


def test_a_saved_config_loads_with_the_same_options(tmp_path):
    for option in OPTIONS.values():
        _, after = read_alone(option)
        save_config(after, tmp_path / "config.json")
        assert read_options(load_config(tmp_path / "config.json")) == after
    assert json.loads((tmp_path / "config.json").read_text()).keys() == {f.name for f in dataclasses.fields(Options)}


def test_the_options_flag_lists_every_option():
    lines = run("train.py", "--options").stdout.splitlines()
    assert lines == describe()
    heads = {line.partition(" ")[0]: line for line in lines if line.startswith("--")}
    assert list(heads) == [f"--config.{name}" for name in OPTIONS]
    assert heads["--config.train.epochs"] == "--config.train.epochs  default 120; in epochs; must be positive"
    assert heads["--config.data.exclude"] == "--config.data.exclude  default empty; may change on resume"
    assert heads["--config.degradation.gamma"] == "--config.degradation.gamma  no default"
    assert max(map(len, lines)) <= 120


def test_a_config_file_with_a_wrong_type_gives_a_one_line_error(tmp_path):
    own = tmp_path / "own.py"
    own.write_text(
        "from nrsrd_jax import config\n\n\ndef get_config():\n    c = config.get_config()\n"
        "    c.train.epochs = 'many'\n    return c\n"
    )
    done = run("train.py", "--config", own, cwd=tmp_path, status=2)
    assert done.stderr.startswith(f"error: flag --config={own}: ")
    assert "'epochs'" in done.stderr
    assert done.stderr.count("\n") == 1
    own.write_text(own.read_text().replace("c.train.epochs = 'many'", "c.image_size = (32, 'many')"))
    done = run("train.py", "--config", own, cwd=tmp_path, status=2)
    assert done.stderr == "error: image_size is (32, 'many'); it must be two whole numbers\n"


def test_the_range_of_gamma_can_be_set_on_the_command_line(tmp_path):
    """Check an option that has no default. Its type must be known all the same."""
    options = ("--config.degradation.gamma=2,3", "--config.data.root=/nowhere")
    done = run("train.py", "--config", "night600:mdl", *options, cwd=tmp_path, status=2)
    assert "no folder /nowhere" in done.stderr
    done = run("train.py", "--config", "night600:mdl", "--config.degradation.gamma=3,2", cwd=tmp_path, status=2)
    assert "degradation.gamma is (3, 2); it takes two numbers" in done.stderr


def test_the_descriptions_list_every_layout_backbone_and_preset():
    text = "\n".join(describe())
    for name, known in (("data.name", LAYOUTS), ("model.backbone", MODELS), ("degradation.preset", PRESETS)):
        own = text.partition(f"--config.{name} ")[2].partition("\n--config.")[0]
        assert all(re.search(rf"\b{each}\b", own) for each in known)


def test_norm_ratio_has_the_same_defaults_in_the_options_and_in_the_model():
    assert dataclasses.asdict(NormRatioOptions()) == dataclasses.asdict(NormRatio())


def test_pyright_reports_a_misspelt_option_and_no_other(tmp_path):
    (tmp_path / "f.py").write_text(
        "from nrsrd_jax.options import Options\n\n\ndef f(options: Options):\n"
        "    return options.train.epochs, options.train.epocks\n"
    )
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, tmp_path / "f.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.count(" - error: ") == 1, done.stdout
    assert 'Cannot access attribute "epocks" for class "Train"' in done.stdout
