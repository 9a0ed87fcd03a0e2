"""Kill a small training at random moments until it is complete, again and again: `make soak`.

  python tests/soak.py [--runs 3] [--kills 10] [--seed 0]

Each run starts without an image cache, and evaluates and saves after every epoch. After a random time it gets a SIGKILL
or, one time in four, a SIGTERM, and is started again. Its final weights must equal those of an undisturbed run bit for
bit.
"""

import collections
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from people import ROOT, small_config, train_command, write_night

from nrsrd_jax.checkpoint import load, weights_hash
from nrsrd_jax.command import Parser, one_line, positive
from nrsrd_jax.errors import say
from nrsrd_jax.metrics_log import read_metrics
from nrsrd_jax.runs import saved_steps
from nrsrd_jax.sharding import make_mesh


def final_weights(workdir: Path) -> str:
    """Return the hash of the weights in a run's last checkpoint."""
    last = max(saved_steps(workdir))
    return weights_hash(load(workdir / "checkpoints" / str(last), make_mesh())[1])


def moment(workdir: Path, cache: Path, done: int) -> str:
    """Return what a run, started at step `done`, was doing when it was killed. The files on disk tell."""
    if any(workdir.glob("checkpoints/*.orbax-checkpoint-tmp*")):
        return "saving"
    rows = read_metrics(workdir)
    if max((row["step"] for row in rows), default=0) <= done:
        return "decoding into the cache" if any(cache.glob("*.partial")) else "starting or in the first step"
    steps = saved_steps(workdir)
    return "between epochs" if "mAP" in rows[-1] or (steps and rows[-1]["step"] == steps[-1]) else "in an epoch"


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--runs", type=positive, default=3, help="number of runs; default: 3")
    parser.add_argument("--kills", type=int, default=10, help="kill each run at most KILLS times; default: 10")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments; default: 0")
    options = parser.parse_args()
    rng, moments, wrong = random.Random(options.seed), collections.Counter(), 0
    # Each start compiles its programs again, and optimising them would take most of the time.
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_night(place / "night")

        def start(workdir: Path) -> subprocess.Popen:
            log = (place / "log").open("a")
            with log:
                config = small_config(place, train__epochs=100, eval__every=1, model__depth=1)
                script, *rest = train_command(config, workdir)
                return subprocess.Popen([sys.executable, ROOT / script, *rest], env=environment, stdout=log, stderr=log)

        begin = time.time()
        alone = start(place / "alone")
        while alone.poll() is None and not read_metrics(place / "alone"):
            time.sleep(0.05)
        ready = time.time() - begin
        assert alone.wait() == 0, (place / "log").read_text()[-2000:]
        whole, expected = time.time() - begin, final_weights(place / "alone")
        say(f"an undisturbed run takes {whole:.0f} s, {ready:.0f} s of them until the first step")
        # Kill early enough that a run is not complete before the last kill.
        latest = ready + (whole - ready) / options.kills
        for run in range(options.runs):
            workdir, kills, ended = place / f"run{run}", 0, False
            shutil.rmtree(place / "cache", ignore_errors=True)
            while not ended:
                done = max(saved_steps(workdir), default=0)
                process = start(workdir)
                try:
                    # Some runs are killed before their first step: while they import, decode images or compile.
                    process.wait(rng.uniform(0.5 * ready, latest) if kills < options.kills else None)
                    ended = True
                    assert process.returncode == 0, (place / "log").read_text()[-2000:]
                except subprocess.TimeoutExpired:
                    kills += 1
                    moments[moment(workdir, place / "cache", done)] += 1
                    process.send_signal(signal.SIGTERM if rng.random() < 0.25 else signal.SIGKILL)
                    status = process.wait()
                    said = (place / "log").read_text()[-2000:]
                    # A run that has saved after SIGTERM ends with 143. SIGTERM kills a run that does not handle it yet,
                    # and status 0 is that of a run that was complete when the signal came.
                    assert status in (0, 143, -signal.SIGTERM, -signal.SIGKILL), f"status {status}: {said}"
            same = final_weights(workdir) == expected
            wrong += not same
            say(f"run {run + 1}: killed {kills} times, weights {'equal' if same else 'DIFFER'}")
    say(f"{sum(moments.values())} faults: {', '.join(f'{n} {what}' for what, n in moments.most_common())}")
    say(f"{options.runs - wrong} of {options.runs} runs have the weights of the undisturbed run")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    one_line(main)
