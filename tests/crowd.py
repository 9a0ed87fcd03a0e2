"""Random people with crops, for the tests of error rates."""

import numpy as np

WIDTH = 8


def draw(rng, people, common=0.0, crops=(2, 8)):
    """Draw random features [N, WIDTH] and their people [N].

    People have uniform directions, or directions that lean towards a common one. Some people's crops vary more.
    """
    who = np.repeat(np.arange(people), rng.integers(*crops, people))
    person = rng.normal(size=(people, WIDTH))
    person[:, 0] += common
    spread = rng.choice([0.3, 0.9], people)[who, None]
    return person[who] + spread * rng.normal(size=(len(who), WIDTH)), who
