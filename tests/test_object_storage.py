"""A gallery in object storage, which cannot be locked, keeps one row of each crop."""

import math
import threading
import time

import psutil
import pytest
from bucket import Bucket
from people import PATTERN, paths_in, start, write_images

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


@pytest.fixture
def bucket(monkeypatch):
    """Start a server with an empty bucket, which this process and the commands that it starts find."""
    with Bucket() as server:
        threading.Thread(target=server.serve_forever).start()
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server
        server.shutdown()


# Write four crops at a time. LanceDB writes a file, the record of the transaction and the new version for each of them.
CHUNK, WRITES = 4, 3
CODE = f"""
from nrsrd_jax import embed
import nrsrd_jax.gallery.embed
nrsrd_jax.gallery.embed.CHUNK = {CHUNK}
embed.command()
"""


@pytest.mark.long
def test_a_killed_embed_into_s3_continues_and_no_crop_is_lost_or_there_twice(bucket, model, tmp_path):
    """Kill it at several writes. The server gets some of them completely, and others not at all."""
    write_images(tmp_path / "crops", range(10), frames=2)
    crops = sorted(map(str, (tmp_path / "crops").iterdir()))
    command = ["-c", CODE, tmp_path / "crops", "--model", model, "--gallery", "s3://bucket/g"]

    def embed_until(write, received):
        first = bucket.writes

        def kill(number):
            if number == first + write:
                process.kill()
                assert process.pid
                while psutil.pid_exists(process.pid):
                    time.sleep(0.01)
                if not received:
                    raise ConnectionAbortedError

        bucket.before_write = kill
        process = start(command)
        assert process.wait(300) == -9
        # Wait until the server has handled the last request.
        with bucket.lock:
            bucket.before_write = lambda number: None

    # The table is created with two writes.
    embed_until(2, received=False)
    # The second batch is in a file, but not in the table.
    embed_until(2 + WRITES + 1, received=True)
    assert len(paths_in("s3://bucket/g")) == CHUNK
    # The first batch is in the table, but the process did not learn of it.
    embed_until(WRITES, received=True)
    assert len(paths_in("s3://bucket/g")) == 2 * CHUNK
    # All crops are in the table, and the compaction has begun.
    left = math.ceil((len(crops) - 2 * CHUNK) / CHUNK)
    embed_until(WRITES * left + 2, received=False)
    assert paths_in("s3://bucket/g") == crops
    process = start(command)
    assert process.wait(300) == 0
    assert f"0 crops embedded, {len(crops)} unchanged" in process.communicate()[0]
    assert paths_in("s3://bucket/g") == crops
