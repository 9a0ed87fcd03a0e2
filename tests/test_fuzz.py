"""A file of any content, and any option, is either read or refused in one line."""

import contextlib
import io
import json

import numpy as np
import pytest
from absl import flags
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ml_collections import config_flags
from people import small_model
from PIL import Image

from nrsrd_jax import checkpoint, command
from nrsrd_jax import config as configuration
from nrsrd_jax.checkpoint import save_weights
from nrsrd_jax.data import datasets
from nrsrd_jax.data.images import decode
from nrsrd_jax.errors import InputError
from nrsrd_jax.metrics_log import logged_scores, read_metrics
from nrsrd_jax.options import OPTIONS, read_options
from nrsrd_jax.report.curves import read_curves
from nrsrd_jax.sharding import make_mesh

pytestmark = pytest.mark.slow

# Every example writes its files anew, so all of them may use one folder.
often = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@contextlib.contextmanager
def refused_in_one_line():
    """Accept an InputError of one line. Any other error fails the test."""
    try:
        yield
    except InputError as error:
        if "\n" in str(error):
            pytest.fail(str(error))


def picture(ending):
    file = io.BytesIO()
    Image.fromarray(np.arange(1200, dtype=np.uint8).reshape(20, 20, 3)).save(file, ending)
    return file.getvalue()


PICTURES = [picture(ending) for ending in ("JPEG", "PNG", "BMP", "WEBP")]


@often
@given(
    st.sampled_from(PICTURES), st.lists(st.tuples(st.integers(0, 2000), st.binary(max_size=4)), max_size=8), st.data()
)
def test_a_damaged_picture_is_decoded_or_refused(tmp_path, content, changes, data):
    """Bytes of the picture are changed, and it may be truncated."""
    content = bytearray(content)
    for place, new in changes:
        content[place % len(content) : place % len(content) + len(new)] = new
    path = tmp_path / "a.jpg"
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    with refused_in_one_line():
        assert decode(path, (32, 16), "bilinear").shape == (32, 16, 3)


@often
@given(st.text(max_size=200) | st.lists(st.lists(st.text(max_size=8), max_size=5).map(",".join)).map("\n".join))
def test_any_manifest_is_read_or_refused(tmp_path, text):
    path = tmp_path / "m.csv"
    path.write_text("path,pid,camera,split\n" + text, encoding="utf-8", errors="surrogatepass")
    with refused_in_one_line():
        datasets.read_dataset("manifest", path)


@often
@given(st.lists(JSON.map(json.dumps) | st.text(max_size=30), max_size=6))
def test_any_log_of_a_run_is_read(tmp_path, lines):
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    assert all(isinstance(value, int | float) for row in read_metrics(tmp_path) for value in row.values())
    read_curves(tmp_path)
    logged_scores(tmp_path, 1)


@often
@given(JSON)
def test_any_config_of_a_run_is_read_or_refused(tmp_path, values):
    (tmp_path / "config.json").write_text(json.dumps(values))
    with refused_in_one_line():
        read_options(configuration.load_config(tmp_path / "config.json"))


@often
@given(
    st.sampled_from(sorted(OPTIONS)) | st.text(max_size=12),
    st.text(max_size=12) | st.floats().map(str) | st.integers().map(str),
)
def test_any_option_of_the_command_line_is_accepted_or_refused(name, value):
    """An option is accepted, refused by the flag parser (status 2), or refused because of its range."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", configuration.get_config(), flag_values=values)
    with refused_in_one_line():
        try:
            with command._one_line_errors():
                values(["train.py", f"--config.{name}={value}"])
        except SystemExit as end:
            assert end.code == 2  # noqa: PT017
            return
        read_options(values.config)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "c"
    save_weights(path, *small_model(1), {})
    return path, (path / "model" / "metadata").read_text()


@settings(often, max_examples=60)
@given(data=st.data())
def test_a_changed_description_of_a_model_is_read_or_refused(saved, data):
    """The description has no hash of itself. One of its values is changed, or its text is truncated."""
    path, text = saved
    values = json.loads(text)
    del values["provenance"]["model_sha256"]
    name = data.draw(st.sampled_from(sorted(values)))
    changed = json.dumps(values | {name: data.draw(JSON)})
    (path / "model" / "metadata").write_text(
        data.draw(st.sampled_from([changed, text[: len(text) // 2], changed[:-1]]))
    )
    with refused_in_one_line():
        checkpoint.load(path, make_mesh())
