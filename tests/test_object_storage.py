"""A gallery in object storage, which cannot be locked, keeps one row of each crop."""

import pytest
from people import PATTERN

from nrsrd_jax.errors import InputError
from nrsrd_jax.gallery.store import Gallery

pytestmark = pytest.mark.slow


def test_a_gallery_in_object_storage_works_and_keeps_one_row_of_crops_embedded_twice(crops, model, nrsrd, tmp_path):
    """Shared memory stands in for object storage, which cannot be locked."""
    place = f"shared-memory://{tmp_path.name}/g"
    with pytest.raises(InputError, match="is not a gallery; nrsrd embed makes one"):
        nrsrd("search", crops, "--gallery", place)
    nrsrd("embed", crops, "--model", model, "--gallery", place, "--pattern", PATTERN)
    gallery = Gallery.open(place)
    table, features = gallery.read(columns=("path", "size", "modified"))
    # Another process adds five of the crops again, without their persons and cameras.
    gallery.add(table.to_pylist()[:5], features[:5])
    assert "12 unchanged" in nrsrd("embed", crops, "--model", model, "--gallery", place, "--pattern", PATTERN)
    assert "12 with matches among 12 crops" in nrsrd("search", crops, "--gallery", place)
    with pytest.raises(InputError, match="a LanceDB server, on which nrsrd cannot delete crops permanently"):
        Gallery.open("db://night")
