"""Layouts on disk are read into splits, decoded images are cached, and batches follow the plan."""

import dataclasses
import functools
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from people import write_images, write_night
from PIL import Image

from nrsrd_jax.data import datasets, images, pipeline
from nrsrd_jax.data.sampling import BatchPlan, ShuffledPlan
from nrsrd_jax.errors import InputError
from nrsrd_jax.inputs import make_plans
from nrsrd_jax.options import Train

pytestmark = pytest.mark.slow


def test_the_night600_layout_is_read(tmp_path):
    write_night(tmp_path, identities=3)
    (tmp_path / "query").rename(tmp_path / "query_3")
    test = tmp_path / "bounding_box_test"
    # Identity -1 is junk, which is left out; identity 0 is a distractor, which stays.
    (test / "0100_c1_000000.jpg").rename(test / "-1_c3_000000.jpg")
    (test / "0101_c1_000000.jpg").rename(test / "0000_c6_000000.PNG")
    (test / "Thumbs.db").write_text("no image")
    data = datasets.read_dataset("night600", tmp_path)
    assert (len(data.train), len(data.query), len(data.gallery)) == (12, 4, 11)
    assert -1 not in data.gallery.pids
    assert 0 in data.gallery.pids
    assert set(data.gallery.cameras) == {1, 2, 6}


@pytest.mark.parametrize(
    ("name", "pid", "camera"),
    [
        ("0001_c1_000.jpg", 1, 1),
        ("123456_c8s1_7.jpg", 123456, 8),
        ("7_c12_0.jpg", 7, 12),
        ("0002_c3001.jpg", 2, 3001),
        ("0001_c002_0.jpg", 1, 2),
        ("-2_c013s2_0.jpg", -2, 13),
        ("0002_c1s1_000451_03.jpg", 2, 1),
        ("5_c0004.jpg", 5, 4),
        ("0001_c1 (2).jpg", 1, 1),
    ],
)
def test_identity_and_camera_come_from_the_name(tmp_path, name, pid, camera):
    write_night(tmp_path)
    Image.new("RGB", (4, 8)).save(tmp_path / "bounding_box_test" / name)
    gallery = datasets.read_dataset("night600", tmp_path).gallery
    at = [path.name for path in gallery.paths].index(name)
    assert (gallery.pids[at], gallery.cameras[at]) == (pid, camera)


def test_labels_number_the_identities_in_sorted_order(tmp_path):
    write_images(tmp_path, [1200, 7, 33], cameras=(1, 12))
    split = datasets.read_bright(tmp_path)
    expected = {7: 0, 33: 1, 1200: 2}
    assert [expected[pid] for pid in split.pids] == split.labels.tolist()
    assert set(split.cameras) == {1, 12}


def test_the_rgbnt201_layout_is_read(tmp_path):
    for folder in ("train_171/RGB", "test/RGB"):
        (tmp_path / folder).mkdir(parents=True)
        for name in ("000001_cam1_0_00.jpg", "000258_cam4_0_13.jpg"):
            Image.new("RGB", (4, 8)).save(tmp_path / folder / name)
    data = datasets.read_dataset("rgbnt201", tmp_path)
    assert data.train.pids.tolist() == [1, 258]
    assert data.query.cameras.tolist() == [1, 4]
    assert data.query.paths == data.gallery.paths


@pytest.mark.parametrize("names", [("train", "test"), ("mask_train_v2", "mask_test_v2")])
def test_the_msmt17_layout_is_read_in_both_versions(tmp_path, names):
    for folder in names:
        (tmp_path / folder).mkdir()
    for part, pid in (("train", 0), ("val", 1), ("query", 0), ("gallery", 0)):
        (tmp_path / f"list_{part}.txt").write_text(
            f"{pid:04d}/{pid:04d}_000_{pid + 3:02d}_0303morning_{part}.jpg {pid}\n"
        )
    data = datasets.read_dataset("msmt17", tmp_path)
    assert data.train.pids.tolist() == [0, 1]
    assert data.train.cameras.tolist() == [3, 4]
    assert data.gallery.paths[0] == tmp_path / names[1] / "0000/0000_000_03_0303morning_gallery.jpg"


def test_bright_and_dark_images_are_paired_by_file_name(tmp_path):
    write_images(tmp_path / "bright" / "bounding_box_train", [1, 2])
    write_images(tmp_path / "dark", [2, 3])
    bright, dark = datasets.find_dark_twins(datasets.read_bright(tmp_path / "bright"), tmp_path / "dark")
    assert [p.name for p in bright.paths] == [p.name for p in dark.paths]
    assert set(bright.pids) == {2}
    with pytest.raises(InputError, match=r"no image in .* has the file name"):
        datasets.find_dark_twins(datasets.read_bright(tmp_path / "bright"), make(tmp_path / "other", [9]))


def make(folder, identities):
    write_images(folder, identities)
    return folder


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: rename_all(root, "query", "queries"), "has no folder query_3 or query"),
        (lambda root: empty(root / "bounding_box_train"), "bounding_box_train has no images"),
        (lambda root: (root / "query" / "person.jpg").write_bytes(b""), "person.jpg: no identity and camera"),
        (lambda root: rename_all(root.parent, root.name, "gone"), "no folder .*Night600"),
    ],
)
def test_a_broken_layout_is_named(tmp_path, spoil, message):
    root = write_night(tmp_path / "night")
    spoil(root)
    with pytest.raises(InputError, match=message):
        datasets.read_dataset("night600", root)


def rename_all(parent, old, new):
    (parent / old).rename(parent / new)


def empty(folder):
    for path in folder.iterdir():
        path.unlink()


def test_the_hash_of_a_split_depends_on_its_files_and_not_on_their_folder(tmp_path):
    first = datasets.read_bright(make(tmp_path / "a", [1, 2]))
    assert first.hash() == datasets.read_bright(make(tmp_path / "b", [1, 2])).hash()
    assert first.hash() != datasets.read_bright(make(tmp_path / "c", [1, 3])).hash()


def test_images_are_resized_as_by_the_official_transforms(golden, tmp_path):
    g = golden("transforms")
    path = tmp_path / "a.png"
    Image.fromarray(g["image"]).save(path)
    for resampling, name in (("bicubic", "train"), ("bilinear", "test")):
        decoded = images.decode(path, (256, 128), resampling)
        np.testing.assert_array_equal(decoded, g[f"{name}_resized_u8"])


def paths_in(folder, identities=(1, 2, 3)):
    write_images(folder, identities)
    return sorted(folder.iterdir())


def test_cached_images_are_not_decoded_again(tmp_path):
    paths = paths_in(tmp_path / "images")
    first = images.cached_images(paths, (32, 16), "bicubic", tmp_path / "cache")
    np.testing.assert_array_equal(first[3], images.decode(paths[3], (32, 16), "bicubic"))
    written = next((tmp_path / "cache").glob("*.npy")).stat().st_mtime_ns
    second = images.cached_images(paths, (32, 16), "bicubic", tmp_path / "cache")
    np.testing.assert_array_equal(first, second)
    assert next((tmp_path / "cache").glob("*.npy")).stat().st_mtime_ns == written
    images.cached_images(paths, (32, 16), "bilinear", tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write decoded images to .*file.*set data.cache_dir"):
        images.cached_images(paths_in(tmp_path / "images"), (32, 16), "bicubic", tmp_path / "file" / "cache")


def test_a_changed_image_is_decoded_again(tmp_path):
    paths = paths_in(tmp_path / "images")
    before = images.cached_images(paths, (32, 16), "bicubic", tmp_path / "cache")[0].copy()
    Image.new("RGB", (20, 40), (1, 2, 3)).save(paths[0])
    after = images.cached_images(paths, (32, 16), "bicubic", tmp_path / "cache")[0]
    assert not np.array_equal(before, after)


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_an_unreadable_image_is_named_and_nothing_is_cached(tmp_path, content):
    paths = paths_in(tmp_path / "images")
    paths[1].write_bytes(paths[1].read_bytes()[:200] if content is None else content)
    paths[4].write_bytes(b"")
    with pytest.raises(InputError, match=rf"{paths[1].name}.*and 1 more of 12 images"):
        images.cached_images(paths, (32, 16), "bicubic", tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.npy"))


def build_slowly(paths, cache, delay):
    read = images.read_picture

    def slow(path):
        time.sleep(delay)
        return read(path)

    images.read_picture = slow
    np.save(cache / f"seen-{os.getpid()}", images.cached_images(paths, (32, 16), "bicubic", cache))


def start_builder(paths, cache, delay):
    # JAX has started threads in this process, so a fork could deadlock, and JAX warns of it.
    process = multiprocessing.get_context("spawn").Process(target=build_slowly, args=(paths, cache, delay))
    process.start()
    return process


def wait_for(condition, seconds=60):
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline
        time.sleep(0.02)


def test_two_processes_share_one_cache_even_after_another_was_killed(tmp_path):
    paths = paths_in(tmp_path / "images")
    cache = tmp_path / "cache"
    cache.mkdir()
    # The long delay leaves the writer in the middle of its file when the signal comes.
    killed = start_builder(paths, cache, delay=30)
    wait_for(lambda: list(cache.glob("*.partial")))
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    both = [start_builder(paths, cache, delay=0.05) for _ in range(2)]
    for process in both:
        process.join(120)
        assert process.exitcode == 0
    expected = np.stack([images.decode(path, (32, 16), "bicubic") for path in paths])
    seen = list(cache.glob("seen-*.npy"))
    assert len(seen) == 2
    for path in seen:
        np.testing.assert_array_equal(np.load(path), expected)
    assert len([p for p in cache.glob("*.npy") if not p.name.startswith("seen")]) == 1


plans = st.tuples(st.lists(st.integers(1, 9), min_size=4, max_size=12), st.integers(1, 4), st.integers(0, 999))


@settings(deadline=None, max_examples=60)
@given(plans)
def test_batches_hold_p_identities_with_k_images(plan):
    counts, instances, seed = plan
    labels = np.repeat(np.arange(len(counts)), counts)
    sampler = BatchPlan(labels, 4 * instances, instances, seed)
    epoch = sampler.epoch(0)
    for batch in epoch:
        drawn = labels[batch].reshape(4, instances)
        assert (drawn == drawn[:, :1]).all()
        assert len(set(drawn[:, 0])) == 4
    used = np.concatenate(epoch)
    for identity, count in enumerate(counts):
        mine = used[labels[used] == identity]
        # An identity with fewer than K images has one group, in which images are repeated.
        assert len(mine) <= max(count // instances, 1) * instances
        if count >= instances:
            # Images are drawn without replacement.
            assert len(set(mine.tolist())) == len(mine)
    # An epoch ends only when fewer than P identities have groups left.
    left = [max(c // instances, 1) - (labels[used] == i).sum() // instances for i, c in enumerate(counts)]
    assert sum(n > 0 for n in left) < 4


@pytest.mark.parametrize("plan", [
    functools.partial(BatchPlan, np.repeat(np.arange(8), 5), 8, 2), functools.partial(ShuffledPlan, 42, 8),
])  # fmt: skip
def test_a_batch_depends_only_on_seed_and_step(plan):
    in_order = plan(seed=3)
    batches = [in_order.batch(step) for step in range(12)]
    fresh = plan(seed=3)
    for step in (11, 0, 7):
        np.testing.assert_array_equal(fresh.batch(step), batches[step])
    for other in (plan(seed=4), plan(seed=3, stream=1)):
        assert any(not np.array_equal(other.batch(s), batches[s]) for s in range(3))
    epochs = [in_order.locate(step)[0] for step in range(12)]
    assert epochs == sorted(epochs)
    assert in_order.locate(in_order.steps(2)) == (2, 0)


@pytest.mark.parametrize(
    ("identities", "batch", "instances", "message"),
    [
        (1, 4, 4, "show a single identity"),
        (3, 16, 4, "show 3 identities, but a batch of 16 takes 4 .* lower train.batch_size to 12"),
        (8, 10, 4, "train.batch_size 10 is not a multiple of train.instances 4"),
    ],
)
def test_a_batch_that_cannot_be_drawn_is_named(identities, batch, instances, message):
    with pytest.raises(InputError, match=message):
        BatchPlan(np.repeat(np.arange(identities), 4), batch, instances, seed=0)


def test_without_instances_each_epoch_shows_every_image_once_in_random_order():
    """IDE, PCB and IDF draw images so. Images that do not fill a batch are left out of an epoch."""
    split = datasets.Split((Path("x.jpg"),) * 42, np.repeat(np.arange(6), 7), np.zeros(42, int))
    plans = make_plans(Train(batch_size=8, instances=0, seed=3), {"real": split, "aux": split})
    epochs = [[plans["real"].batch(step).tolist() for step in range(start, start + 5)] for start in (0, 5)]
    assert plans["real"].steps(2) == 10
    for epoch in epochs:
        assert len({image for batch in epoch for image in batch}) == 40
    assert epochs[0] != epochs[1]
    assert plans["aux"].batch(0).tolist() != epochs[0][0]
    # A batch is not balanced: it shows some people more often than others.
    assert max(np.bincount(split.labels[epochs[0][0]])) > 8 / 6
    for labels, size, message in (
        (split.labels, 43, "there are 42 images"),
        (0 * split.labels, 8, "a single identity"),
    ):
        with pytest.raises(InputError, match=message):
            make_plans(Train(batch_size=size, instances=0), {"real": dataclasses.replace(split, pids=labels)})


def test_batches_from_cache_files_and_indices_are_the_same(tmp_path):
    paths = paths_in(tmp_path / "images", range(6))
    labels = np.repeat(np.arange(6), 4).astype(np.int32)
    cached = images.cached_images(paths, (32, 16), "bicubic", tmp_path / "cache")
    files = pipeline.Files(paths, (32, 16), "bicubic")

    def domains(source):
        return {
            "real": pipeline.Domain(BatchPlan(labels, 8, 2, seed=0), labels, np.zeros_like(labels), {"images": source})
        }

    from_cache = list(pipeline.batches(domains(cached), 2, 7, pixels=True))
    from_files = list(pipeline.batches(domains(files), 2, 7, pixels=True, threads=4))
    indices = list(pipeline.batches(domains(cached), 2, 7, pixels=False))
    assert len(from_cache) == len(from_files) == len(indices) == 5
    for ours, theirs, index in zip(from_cache, from_files, indices, strict=True):
        np.testing.assert_array_equal(ours["real"]["images"], theirs["real"]["images"])
        np.testing.assert_array_equal(ours["real"]["images"], cached[index["real"]["images"]])
        np.testing.assert_array_equal(ours["real"]["labels"], labels[index["real"]["images"]])


def test_the_data_modules_do_not_import_jax():
    folder = Path(datasets.__file__).parent
    assert not [path for path in folder.glob("*.py") if "import jax" in path.read_text()]
