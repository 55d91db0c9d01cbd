"""A short run of the soak; the long one is `make soak`."""

from pathlib import Path

import pytest

from tests.soak import calamities, failover, partition, reshard

# A machine that also runs other tests is given longer than the target, which the long run holds to.
BACK_WITHIN_S = 4.0


def test_the_bound_holds_while_everything_fails(tmp_path: Path) -> None:
    assert calamities.run(3, 20, tmp_path).wrong == []


def test_the_bound_holds_while_the_hot_slot_moves(tmp_path: Path) -> None:
    assert reshard.run(1, 20, tmp_path).wrong == []


@pytest.mark.skipif(bool(partition.missing()), reason=partition.missing())
def test_the_bound_holds_in_a_partition(tmp_path: Path) -> None:
    assert partition.run(2, 20, tmp_path).wrong == []


@pytest.mark.parametrize(("kind", "how"), [("sentinel", "paused"), ("cluster", "killed")])
def test_a_failover_loses_nothing_that_the_servers_keep(kind: str, how: str, tmp_path: Path) -> None:
    told = failover.Failover(kind, how, 20, tmp_path).run(0.5, BACK_WITHIN_S)
    assert told.wrong == []


@pytest.mark.parametrize("plant", calamities.PLANTS)
def test_a_planted_fault_is_found(plant: str, tmp_path: Path) -> None:
    assert calamities.run(1.5, 20, tmp_path, plant).wrong


def test_a_write_that_was_lost_is_found(tmp_path: Path) -> None:
    wrong = failover.Failover("sentinel", "killed", 20, tmp_path, "lost").run(0.3, BACK_WITHIN_S).wrong
    assert any("no server has it" in each for each in wrong)


@pytest.mark.parametrize("plant", reshard.PLANTS)
def test_a_fault_of_a_move_is_found(plant: str, tmp_path: Path) -> None:
    assert reshard.run(0.5, 20, tmp_path, plant).wrong
