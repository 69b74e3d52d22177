"""Files that somebody else wrote: whatever is in them, the answer is a `UserError`, which a command makes a sentence.

`python -m pytest --hypothesis-profile=fuzz -k fuzz` tries 2,000 inputs of each kind instead of 100.
"""

import contextlib
import json
import shutil
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnist_flax import config, train
from mnist_flax.errors import UserError
from mnist_flax.files import write_text
from mnist_flax.inference import weights
from mnist_flax.inference.classifier import PRETRAINED, Classifier
from mnist_flax.training import checkpoint, checkpoint_files

LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["mnist", "muon"])
)
JSON = st.recursive(
    LEAVES, lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text(max_size=5), some, max_size=3)
)
EDITS = st.lists(st.tuples(st.integers(0, 2**20), st.binary(max_size=8)), max_size=4)


def edited(data: bytes, edits) -> bytes:
    """`data` with bytes replaced here and there."""
    for position, noise in edits:
        position %= len(data)
        data = data[:position] + noise + data[position + len(noise) :]
    return data


def changed(values: dict, changes: dict) -> dict:
    """`values` with others in the place of some, named by number."""
    names = list(values)
    return values | {names[number % len(names)]: value for number, value in changes.items()}


CHANGES = st.dictionaries(st.integers(0, 40), JSON, max_size=3)


@given(CHANGES, st.dictionaries(st.text(max_size=9), JSON, max_size=1), EDITS)
def test_fuzz_config_files(tmp_path_factory, changes, more, edits):
    path = tmp_path_factory.getbasetemp() / "config.json"
    text = json.dumps(changed(config.Config().to_json(), changes) | more)
    path.write_bytes(edited(text.encode(), edits))
    with contextlib.suppress(UserError):
        train.parse(["--config", str(path)])


@given(CHANGES)
def test_fuzz_weights_files_cards(tmp_path_factory, changes):
    path = tmp_path_factory.getbasetemp() / "card.safetensors"
    variables, card, reference = weights.load(PRETRAINED)
    weights.save(path, variables, changed(card, changes), reference)
    with contextlib.suppress(UserError):
        Classifier(*weights.load(path))


@given(EDITS, st.integers(0, 2000))
def test_fuzz_weights_files(tmp_path_factory, edits, length):
    path = tmp_path_factory.getbasetemp() / "edited.safetensors"
    data = edited(PRETRAINED.read_bytes()[: 2000 + length], edits)  # the header and its neighbourhood
    path.write_bytes(data + PRETRAINED.read_bytes()[len(data) :])
    tracemalloc.start()
    with contextlib.suppress(UserError):
        Classifier(*weights.load(path))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 50_000_000


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory with one checkpoint, made of the shipped weights."""
    directory = tmp_path_factory.mktemp("run")
    variables, card, _ = weights.load(PRETRAINED)
    checkpoints = checkpoint.Checkpoints(directory / "best")
    checkpoints.save(1, variables, card)
    return directory


@given(CHANGES, EDITS)
def test_fuzz_checkpoints_metadata(run, tmp_path_factory, changes, edits):
    """Its author gave it sums that are right."""
    directory = tmp_path_factory.getbasetemp() / "hostile"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(run, directory)
    path = directory / "best/1"
    metadata = path / "metadata/metadata"
    text = json.dumps(changed(json.loads(metadata.read_text()), changes))
    metadata.write_bytes(edited(text.encode(), edits))
    write_text(path / checkpoint_files.SUMS, checkpoint_files.checksums(path))
    with contextlib.suppress(UserError):
        Classifier(*weights.load_run(directory))
