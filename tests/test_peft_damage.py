"""Files of Hugging Face's peft with any config and any damage: read, or refused with a reason."""

import json
import shutil

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import peftjax
from peftjax.interop.errors import CheckpointError
from tests.oracle.cases import GOLDEN
from tests.peft_folders import CONFIG, WEIGHTS, base

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**12) | st.floats() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=4,
)
_SOURCES = ['llama/lora', 'llama/ia3', 'llama/vera', 'llama/shira', 'llama/prefix_tuning']


def _refused_or_read(folder):
    try:
        peftjax.load_adapter(folder, base('llama', True))
    except CheckpointError as error:
        assert str(error)


@settings(
    max_examples=150, deadline=20_000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), source=st.sampled_from(_SOURCES))
def test_any_config_is_read_or_refused(data, source, tmp_path_factory):
    folder = tmp_path_factory.mktemp('fuzz') / 'adapter'
    shutil.copytree(GOLDEN / source, folder)
    config = json.loads((folder / CONFIG).read_text())
    for name in data.draw(st.lists(st.sampled_from(sorted(config)), max_size=3)):
        config[name] = data.draw(_JSON)
    (folder / CONFIG).write_text(json.dumps(config))
    _refused_or_read(folder)


@settings(
    max_examples=150, deadline=20_000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), source=st.sampled_from(_SOURCES), file=st.sampled_from([CONFIG, WEIGHTS]))
def test_any_damage_is_read_or_refused(data, source, file, tmp_path_factory):
    folder = tmp_path_factory.mktemp('fuzz') / 'adapter'
    shutil.copytree(GOLDEN / source, folder)
    content = bytearray((folder / file).read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        # Most of the damage goes where the structure is.
        content[data.draw(st.integers(0, min(len(content), 900) - 1))] ^= data.draw(
            st.integers(1, 255)
        )
    cut = data.draw(st.none() | st.integers(0, len(content)))
    (folder / file).write_bytes(bytes(content[:cut]))
    _refused_or_read(folder)
