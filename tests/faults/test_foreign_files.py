import random

import pytest
from faults import foreign_files


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("foreign")


@pytest.mark.parametrize("seed", range(4))
def test_no_command_touches_what_no_run_wrote(directory, seed):
    with foreign_files.stand_ins():
        tried = foreign_files.trial(directory / f"trial{seed}", random.Random(seed))
    assert tried.foreign or tried.damaged
    assert tried.outcomes.total() == 4
