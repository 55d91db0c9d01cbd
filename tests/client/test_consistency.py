"""A short run of the consistency checker; the long one is `python -m tests.client.consistency`."""

import pytest

from tests.client.consistency import Cluster, Server, Stage, check


@pytest.mark.parametrize("stage", [Server, Cluster])
def test_nothing_is_wrong_under_random_faults(stage: type[Stage]) -> None:
    told = check(8, seed=20, stages=(stage,))
    assert told["wrong"] == []
    assert sum(told[stage.name]["faults"].values()) >= 3


@pytest.mark.parametrize("bug", ["missing-fence", "deaf"])
def test_a_planted_bug_is_found(bug: str) -> None:
    assert check(4, seed=20, plant=bug, stages=(Server,))["wrong"]
