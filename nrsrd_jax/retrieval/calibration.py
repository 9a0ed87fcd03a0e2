"""What a similarity means to a user: thresholds, probabilities and strangers, as `nrsrd calibrate` measured them."""

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, logit

from ..errors import InputError, say
from ..files import expanded, read_bounded
from .embedding import identity_difference
from .pairs import people_needed

# A file with more bytes or more people than this is refused.
MOST_BYTES = 2**24
MOST_PEOPLE = 10**12
# The name of a calibration in its model's folder.
FILE = "calibration.json"


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A calibration of one model, as `load_calibration` reads it.

    Attributes:
        path: the file it was read from.
        model: the calibrated model, as `Embedder.identity()`.
        people: how many people it was measured on.
        thresholds, fmr: ascending thresholds of similarity [K], and the false-match rate at each [K].
        points: ascending similarities, and the probability of a genuine pair at each, [2, M].
    """

    path: Path
    model: dict[str, Any]
    people: int
    thresholds: np.ndarray
    fmr: np.ndarray
    points: np.ndarray

    @property
    def most(self) -> float:
        """Return the largest N that "one stranger in N" may name: pairs of people / 3, by the rule of three."""
        return self.people * (self.people - 1) / 6

    def probability(self, similarity: np.ndarray | float, prior: float = 0.5) -> np.ndarray:
        """Return the probability that each pair shows one person.

        Args:
            similarity: cosines in −1..1, of any shape.
            prior: the share of all pairs that show one person, above 0 and below 1.

        Returns:
            Probabilities in 0..1, of the same shape.

        Example:
            >>> import numpy as np
            >>> from pathlib import Path
            >>> from nrsrd_jax.retrieval.calibration import Calibration
            >>> curve = np.array([0.2, 0.6]), np.array([1.0, 0.01])
            >>> found = Calibration(Path("c.json"), {}, 40, *curve, points=np.array([[0.2, 0.6], [0.1, 0.9]]))
            >>> found.probability(0.4).round(3).item(), found.probability(0.4, prior=0.01).round(3).item()
            (0.5, 0.01)
        """
        # The stored probabilities have the prior 1/2, so by Bayes' rule the log-odds of `prior` are added.
        return expit(logit(np.interp(similarity, *self.points)) + logit(prior))

    def threshold_at(self, fmr: float) -> float:
        """Return the lowest threshold at which the false-match rate is at most `fmr`.

        Args:
            fmr: a share of the impostor pairs, above 0 and at most 1.

        Returns:
            The threshold of similarity.

        Raises:
            InputError: `fmr` is out of its range, or the calibration has too few people for it.

        Example:
            >>> import numpy as np
            >>> from pathlib import Path
            >>> from nrsrd_jax.retrieval.calibration import Calibration
            >>> curve = np.array([0.2, 0.6]), np.array([1.0, 0.01])
            >>> Calibration(Path("c.json"), {}, 40, *curve, points=np.zeros((2, 1))).threshold_at(0.01)
            0.6
        """
        if not 0 < fmr <= 1:
            raise InputError(f"the false-match rate {fmr:g} is out of range: give a number above 0 and at most 1")
        # A curve ends above 0 if strangers have the same features; then no threshold has a very low rate.
        if people_needed(fmr) > self.people or self.fmr[-1] > fmr:
            raise InputError(
                f"{self.path} was measured on {self.people} people, too few for a false-match rate of {fmr:g}: it "
                f"needs {people_needed(fmr):,}; ask for a higher rate, or calibrate on more people"
            )
        return float(self.thresholds[np.argmax(self.fmr <= fmr)])

    def round_thresholds(self) -> list[tuple[int, float]]:
        """Return (N, threshold) for N = 10, 100, … as far as there are enough people: one stranger in N matches."""
        found: list[tuple[int, float]] = []
        with contextlib.suppress(InputError):
            for power in range(1, 10):
                found.append((10**power, self.threshold_at(10.0**-power)))
        return found

    def strangers(self, similarity: float) -> float:
        """Return N, where one stranger in N is at least this similar.

        Args:
            similarity: a cosine in −1..1.

        Returns:
            A number from 1 to `most`. `most` means "`most` or more", because there are too few people to be precise.

        Example:
            >>> import numpy as np
            >>> from pathlib import Path
            >>> from nrsrd_jax.retrieval.calibration import Calibration
            >>> curve = np.array([0.2, 0.6, 0.8]), np.array([1.0, 0.01, 0.0])
            >>> found = Calibration(Path("c.json"), {}, 40, *curve, points=np.zeros((2, 1)))
            >>> round(found.strangers(0.4)), found.strangers(0.9)
            (10, 260.0)
        """
        # Interpolate the logarithm, because the rate falls by orders of magnitude. The maximum avoids log(0).
        rate = np.exp(np.interp(similarity, self.thresholds, np.log(np.maximum(self.fmr, 1e-300))))
        # The rule of three bounds what so few people can show, however low the curve is.
        return float(min(max(1 / rate, 1.0), self.most))

    def statement(self, similarity: float) -> str:
        """Return in words how often a stranger is at least this similar.

        Args:
            similarity: a cosine in −1..1.

        Returns:
            A phrase without a full stop.

        Example:
            >>> import numpy as np
            >>> from pathlib import Path
            >>> from nrsrd_jax.retrieval.calibration import Calibration
            >>> curve = np.array([0.2, 0.6, 0.8]), np.array([1.0, 0.01, 0.0])
            >>> found = Calibration(Path("c.json"), {}, 40, *curve, points=np.zeros((2, 1)))
            >>> found.statement(0.4), found.statement(0.9)
            ('one stranger in 10 is this near', 'fewer than one stranger in 260 is this near')
        """
        number = self.strangers(similarity)
        return f"{'fewer than one' if number >= self.most else 'one'} stranger in {number:,.0f} is this near"

    def check_model(self, identity: Mapping[str, Any]) -> None:
        """Raise InputError if `identity`, an `Embedder.identity()`, is not that of the calibrated model."""
        if difference := identity_difference(identity, self.model):
            other, own = difference
            raise InputError(
                f"{self.path} calibrates another model ({own}) than this one ({other}): run nrsrd calibrate with this "
                "model and these options"
            )


def calibration_beside(folder: Path, identity: Mapping[str, Any]) -> Calibration | None:
    """Return the calibration in a model's folder, if it belongs to that model.

    Args:
        folder: the model's folder.
        identity: the model, as `Embedder.identity()`.

    Returns:
        The Calibration. None if there is no file, or, with a warning, if the file belongs to another model.

    Raises:
        InputError: the file is not a calibration.
    """
    if not (folder / FILE).is_file():
        return None
    calibration = load_calibration(folder)
    try:
        calibration.check_model(identity)
    except InputError as error:
        say(f"warning: {error}; the calibration is not used", error=True)
        return None
    return calibration


def load_calibration(path: str | Path) -> Calibration:
    """Read a file that `nrsrd calibrate` wrote.

    Args:
        path: the JSON file, or a folder that holds calibration.json, such as a run.

    Returns:
        The Calibration.

    Raises:
        InputError: the file is missing, or is not a calibration of this version.

    Example:
        >>> from nrsrd_jax.retrieval.calibration import load_calibration
        >>> load_calibration("calibration.json").model["feature"]
        'cls'
    """
    path = expanded(path)
    path = path / FILE if path.is_dir() else path
    try:
        content = json.loads(read_bounded(path, MOST_BYTES))
        curve, points = content["curve"], content["probability"]
        thresholds, fmr, similarity, probability = (
            np.array(column, np.float64)
            for column in (curve["threshold"], curve["fmr"], points["similarity"], points["probability"])
        )
        found = Calibration(
            path, dict(content["model"]), int(content["people"]), thresholds, fmr, np.stack([similarity, probability])
        )
        rising = all((np.diff(x) >= 0).all() for x in (thresholds, -fmr, *found.points))
        inside = all(((x >= 0) & (x <= 1)).all() for x in (fmr, probability))
        flat = thresholds.ndim == fmr.ndim == similarity.ndim == 1 and np.isfinite(thresholds).all()
        if len(thresholds) != len(fmr) or not len(fmr) or not len(similarity) or not (rising and inside and flat):
            raise ValueError("the curve is invalid")
        if not 0 < found.people < MOST_PEOPLE:
            raise ValueError("the number of people is out of range")
    except OSError as error:
        raise InputError(f"cannot read the calibration {path}: {error.strerror}; nrsrd calibrate writes it") from error
    except InputError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise InputError(f"{path} is not a calibration of this version; nrsrd calibrate writes one") from error
    return found
