"""A gallery's record of its model, in the metadata of the table's schema."""

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

# The key of the About in the metadata of the table's schema.
NOTE = b"nrsrd_jax"


@dataclasses.dataclass(frozen=True)
class About:
    """A gallery's record of the model that made its features.

    Attributes:
        model: the checkpoint's path.
        identity: the model's `Embedder.identity()`, which tells it from other models.
        width: how many numbers a feature has.
        backbone: the backbone's name.
        software: the version of nrsrd-jax that made the gallery.
        format: the version of the gallery's format.
    """

    model: str
    identity: dict[str, Any]
    width: int
    backbone: str
    software: str
    format: int = 1

    def choice(self, difference: str) -> str:
        """Return what the user has to give, if another model has the `difference` of `identity_difference`."""
        feature = f"feature {self.identity.get('feature')}"
        return f"--{feature}" if difference == feature else f"the model {self.model}"


def read_about(place: str, schema: "pa.Schema") -> About:
    """Read the record of a table's schema. Raises InputError if it is missing or has another format."""
    try:
        about = About(**json.loads((schema.metadata or {})[NOTE]))
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{place} is not a gallery that nrsrd embed made") from error
    if about.format != 1:
        raise InputError(f"{place} is a gallery of a newer version of nrsrd-jax ({about.software}): update nrsrd-jax")
    return about
