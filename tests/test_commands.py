"""The commands as users type them: train.py, eval.py and the verbs of nrsrd."""

import json
import os
import subprocess
import sys

import pytest
from people import ROOT, run, write_night

from nrsrd_jax.cli import VERBS

pytestmark = pytest.mark.slow

SMALL = (
    "--config.image_size=32,16",
    "--config.train.batch_size=16",
    "--config.train.instances=2",
    "--config.model.depth=1",
)


def test_train_then_evaluate_a_folder_in_the_night600_layout(tmp_path):
    """Train two epochs from another folder. Evaluate the run after its data moved, and its bare checkpoint."""
    night, work = write_night(tmp_path / "night"), tmp_path / "runs" / "w"
    trained = run(
        "train.py", "--config", ROOT / "configs/night600.py:baseline", f"--config.data.root={night}",
        f"--config.data.cache_dir={tmp_path / 'cache'}", "--config.model.backbone=vit_tiny", *SMALL,
        "--config.train.epochs=2", "--workdir", work, cwd=tmp_path,
    )  # fmt: skip
    assert trained.stdout.splitlines()[-1].startswith("done: mAP ")

    night.rename(tmp_path / "moved")
    moved = f"--config.data.root={tmp_path / 'moved'}"
    evaluated = run("eval.py", "--workdir", work, "--output", tmp_path / "r.json", moved, cwd=tmp_path)
    assert evaluated.stdout.splitlines()[-1].startswith("mAP ")
    result = json.loads((tmp_path / "r.json").read_text())
    assert result.keys() >= {"mAP", "mINP", "rank1", "rank5", "rank10", "queries", "queries_without_match"}
    assert result.keys() >= {"config", "data", "weights_sha256", "protocol", "devices", "seconds", "selected_by"}
    # An unpacked archive has no commit, and a working tree may have changes that are not committed.
    if (ROOT / ".git").exists():
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert result["versions"]["commit"].removesuffix("-dirty") == head.strip()
    assert (result["queries"], result["queries_without_match"]) == (4, 0)
    logged = json.loads((work / "metrics.jsonl").read_text().splitlines()[-1])
    assert result["mAP"] == pytest.approx(logged["mAP"])

    page = tmp_path / "page" / "index.html"
    # Without --workdir, eval.py takes the newest run under runs/.
    newest = run("eval.py", moved, "--report", page.parent, cwd=tmp_path)
    assert newest.stdout.splitlines()[-1].endswith(f", {page}")
    assert "Loss and its terms" in page.read_text()
    assert json.loads((work / "result.json").read_text())["mAP"] == pytest.approx(result["mAP"])
    step = next(path for path in (work / "checkpoints").iterdir() if path.name.isdigit())
    run("eval.py", "--checkpoint", step, "--config", ROOT / "configs/night600.py:baseline", moved,
        f"--config.data.cache_dir={tmp_path / 'cache'}", "--output", tmp_path / "bare.json")  # fmt: skip
    assert json.loads((tmp_path / "bare.json").read_text())["mAP"] == pytest.approx(result["mAP"])


@pytest.mark.parametrize(("script", "arguments", "message"), [
    (
        "train.py",
        ["--config", "configs/night600.py:baseline", "--config.model.bakbone=vit_tiny"],
        "there is no option --config.model.bakbone; did you mean model.backbone?",
    ),
    ("train.py", ["--config.image_size=32,16", "--config.image_size=64,32"], "image_size is given 2 times; give"),
    ("train.py", ["--config.epochs=3"], "did you mean train.epochs?"),
    ("train.py", ["--config.optim.learning_rate=3"], "choose one of optim.bias_factor, optim."),
    ("train.py", ["--config.nope=3"], "choose one of augment, aux, data"),
    ("train.py", ["--config.train=3"], "--config.train is a group of options; give one of them: train.batch_size"),
    ("train.py", ["--config", "configs/nigth600.py"], "configs/nigth600.py"),
    ("train.py", ["--config", "nigth600"], "there is no config nigth600; choose one of agw, bot"),
    ("train.py", ["--config", "configs/night600.py:nrsdr"], "there is no variant 'nrsdr'; choose one of baseline"),
    ("train.py", ["--config", "configs/night600.py", "--config.train.epochs=many"], "many"),
    ("train.py", ["configs/night600.py"], "unexpected argument"),
    ("train.py", ["--epochs=3"], "epochs"),
    ("train.py", ["--config", "configs/market1501.py"], "no folder data/Market-1501 for data set market1501: get"),
    ("train.py", ["--config", "configs/msmt17.py"], "no folder data/MSMT17 for data set msmt17: get"),
    ("train.py", ["--config", "configs/rgbnt201.py"], "no folder data/RGBNT201 for data set rgbnt201: get"),
    ("train.py", ["--config", "configs/teacher.py"], "no folder data/Syn_Dark/bright for data set bright: any"),
    ("train.py", ["--config", "configs/teacher.py:x"], "configs/teacher.py has no variants"),
    ("eval.py", ["--workdir", "nowhere"], "nowhere does not exist"),
    ("eval.py", ["--workdir", "a", "--checkpoint", "b"], "give one of them"),
    ("eval.py", [], "no run under runs/ has a checkpoint; train a model"),
])  # fmt: skip
def test_a_mistake_gives_one_line_and_writes_nothing(tmp_path, script, arguments, message):
    absolute = [ROOT / a if a.startswith("configs/") else a for a in arguments]
    done = run(script, *absolute, cwd=tmp_path, status=2)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert not list(tmp_path.iterdir())


def test_a_wrong_key_in_a_config_file_is_named_with_its_line(tmp_path):
    (tmp_path / "own.py").write_text(
        "from nrsrd_jax import config\n\n\ndef get_config():\n    c = config.get_config()\n"
        "    c.optim.learning = 3\n    return c\n"
    )
    done = run("train.py", "--config", tmp_path / "own.py", cwd=tmp_path, status=2)
    assert f"({tmp_path}/own.py, line 6) sets learning, which is not an option; choose one of" in done.stderr
    assert "momentum" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_config_of_this_project_is_found_from_any_folder(tmp_path):
    done = run("train.py", "--config", "configs/demo.py:teacher", "--config.data.root=/nowhere", cwd=tmp_path, status=2)
    assert "no folder /nowhere for data set bright" in done.stderr


def test_a_shipped_config_is_found_by_its_name(tmp_path):
    done = run("train.py", "--config", "night600:baseline", cwd=tmp_path, status=2)
    assert "no folder data/Night600 for data set night600" in done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb):
    done = run("-m", "nrsrd_jax.cli", verb, "--help")
    assert f"nrsrd {verb} " in done.stdout
    assert not done.stderr


@pytest.mark.parametrize(
    "module",
    [
        "train",
        "eval",
        "compare",
        "convert",
        "check",
        "calibrate",
        "cluster",
        "data.check",
        "ablation",
        "analysis",
        "lowlight",
    ],
)
def test_a_verb_can_be_run_as_a_module(module):
    assert "nrsrd " in run("-m", f"nrsrd_jax.{module}", "--help").stdout


# Run `nrsrd train --options`, and send SIGINT to this process when it imports a module.
INTERRUPT = """
import signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == NAME:
            signal.raise_signal(signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Finder())
sys.argv = ["nrsrd train", "--options"]
from nrsrd_jax.cli import run
run("train")
"""
# Send SIGINT to this process in a callback of the garbage collector, where Python swallows KeyboardInterrupt.
SWALLOW = """
import gc, signal, time
from nrsrd_jax import interrupts
def callback(*_):
    gc.callbacks.remove(callback)
    signal.raise_signal(signal.SIGINT)
with interrupts.handled():
    gc.callbacks.append(callback)
    gc.collect()
    time.sleep(30)
"""


@pytest.mark.parametrize("module", ["absl", "jax"])
def test_ctrl_c_during_imports_ends_with_one_line(module):
    """The command imports absl before its handler of Ctrl-C exists, and JAX after that."""
    command = [sys.executable, "-c", INTERRUPT.replace("NAME", repr(module))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stderr) == (130, "\ninterrupted\n")


def test_ctrl_c_works_although_the_garbage_collector_swallows_it():
    assert run("-c", SWALLOW, status=130).stderr == "\ninterrupted\n"


@pytest.mark.parametrize(("end", "status"), [("InputError('bad data')", 2), ("Stopped('bad data', 143)", 143)])
def test_an_error_keeps_its_status_if_the_reader_of_the_output_has_stopped(end, status):
    program = (
        "from nrsrd_jax.command import one_line\nfrom nrsrd_jax.errors import InputError, Stopped\n"
        f"def main():\n    print('result')\n    raise {end}\none_line(main)"
    )
    read, write = os.pipe()
    os.close(read)
    # With PYTHONUNBUFFERED the print itself would fail, before the error.
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=buffered,
        timeout=60,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (status, "error: bad data\n" if status == 2 else "")


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["embed", "--help"]])
def test_help_ends_silently_if_its_reader_stops(arguments):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "nrsrd_jax.cli", *arguments]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_wrong_verb_is_named():
    done = run("-m", "nrsrd_jax.cli", "trian", status=2)
    assert done.stderr == f"error: there is no verb 'trian'; choose one of {', '.join(VERBS)}\n"


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_help_of_a_script_shows_its_usage(script):
    done = run(script, "--help")
    assert f"python {script}" in " ".join(done.stdout.split())
    assert "--workdir" in done.stdout
    assert "--config:" in done.stdout


def test_an_option_without_a_value_does_not_swallow_the_next_argument(tmp_path):
    done = run("-m", "nrsrd_jax.cli", "compare", "--config.eval.flip", "lost-a", "lost-b", cwd=tmp_path, status=2)
    assert "lost-a does not exist" in done.stderr
    # If argparse took --conf for --config, the command would ignore its value.
    done = run("-m", "nrsrd_jax.cli", "compare", "a", "b", "--conf", "demo", cwd=tmp_path, status=2)
    assert "unrecognized arguments: --conf demo" in done.stderr


def test_a_config_of_the_current_folder_comes_before_the_shipped_one(tmp_path):
    (tmp_path / "night600.py").write_text(
        "from nrsrd_jax import config\n\n\ndef get_config(variant):\n    c = config.get_config(variant)\n"
        "    c.data.root = '/mine'\n    return c\n"
    )
    done = run("train.py", "--config", "night600:baseline", cwd=tmp_path, status=2)
    assert "no folder /mine for data set night600" in done.stderr


@pytest.mark.parametrize(
    ("line", "message"), [("del c.train", "lacks train."), ("c.new = 1", "sets new, which is not")]
)
def test_a_config_with_missing_or_unknown_options_gives_one_line(tmp_path, line, message):
    (tmp_path / "own.py").write_text(
        "from nrsrd_jax import config\n\n\ndef get_config():\n"
        f"    c = config.get_config().unlock()\n    {line}\n    return c\n"
    )
    done = run("train.py", "--config", "own.py", cwd=tmp_path, status=2)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
