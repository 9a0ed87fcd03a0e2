"""Where training's numbers go: metrics.jsonl, one line each, and TensorBoard."""

import json
import math
from pathlib import Path

from tensorboardX import SummaryWriter

from .files import write_whole


class MetricsLog:
    """Appends to WORKDIR/metrics.jsonl and to TensorBoard's files in WORKDIR/tensorboard.

    What an earlier, killed run wrote after `start` steps is dropped: the resumed run writes it again. `scores` are
    those of an evaluation after just `start` steps, if it was logged.
    """

    def __init__(self, workdir: Path, start: int):
        path = workdir / "metrics.jsonl"
        self.scores: dict[str, float] = {}
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step(line) <= start]
            for row in map(json.loads, kept):
                if row["step"] == start and "mAP" in row:
                    self.scores = {name: value for name, value in row.items() if name not in ("step", "epoch")}
            write_whole(path, "".join(f"{line}\n" for line in kept))
        self._file = path.open("a")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)

    def write(self, step: int, values: dict[str, float], prefix: str = "train/") -> None:
        """One line {"step": …, name: value, …}; `prefix` groups the names in TensorBoard."""
        print(json.dumps({"step": step} | values), file=self._file, flush=True)
        for name, value in values.items():
            if math.isfinite(value):
                self._board.add_scalar(prefix + name, value, step)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()
        self._board.close()


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf  # a line cut off by a kill
