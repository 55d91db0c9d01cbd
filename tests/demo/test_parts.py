"""The demo's parts on their own."""

from collections import Counter
from pathlib import Path

from keyheat.demo import profile
from keyheat.demo.board import Board, Cell, Phase
from keyheat.demo.client import NUMBER_DIGITS, sale_value
from keyheat.demo.nodes import difference, imbalance


def test_the_profile_is_a_minute_of_the_trace() -> None:
    played = profile.load()
    assert len(played.keys) == len(set(played.keys)) == 25_933
    assert len(played.sequence) == 118_185
    hottest, count = Counter(played.sequence).most_common(1)[0]
    assert hottest == 0
    assert 0.05 < count / len(played.sequence) < 0.07


def test_the_profile_carries_its_attribution() -> None:
    licence = Path(profile.__file__).parent.parent / "data/cluster52.LICENSE.txt"
    assert "Twitter cache trace, cluster 52, © Twitter, CC BY 4.0" in licence.read_text()


def test_the_sequence_is_the_same_every_time() -> None:
    assert profile.load().sequence == profile.load().sequence


def test_a_value_names_its_key() -> None:
    played = profile.load()
    assert all(played.value(index).startswith(played.keys[index]) for index in range(1000))


def test_a_sale_value_carries_its_number() -> None:
    value = sale_value(4711, 512)
    assert len(value) == 512
    assert int(value[:NUMBER_DIGITS]) == 4711


def test_imbalance_is_the_busiest_over_the_mean() -> None:
    assert imbalance([{"get": 10}, {"get": 10}, {"get": 10}]) == 1
    assert imbalance([{"get": 25, "set": 5}, {}, {}]) == 3
    assert imbalance([{}, {}, {}]) == 1


def test_a_difference_is_by_node_and_command() -> None:
    assert difference([{"get": 5, "set": 1}], [{"get": 3}]) == [{"get": 2, "set": 1}]


def test_the_board_is_shared_and_summed(tmp_path: Path) -> None:
    one = Board(tmp_path / "board", 2, is_new=True)
    other = Board(tmp_path / "board", 2)
    one.phase = Phase.SALE_AFTER
    other.count(0, other.phase, Cell.READS)
    other.count(1, other.phase, Cell.READS)
    other.count(1, Phase.WAIT, Cell.READS)
    assert one.total(Cell.READS) == 3
    assert one.total(Cell.READS, (Phase.SALE_AFTER,)) == 2
    one.close()
    other.close()
