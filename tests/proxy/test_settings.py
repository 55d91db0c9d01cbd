"""Rules files: what is wrong is refused at load, naming file, key and accepted values."""

from pathlib import Path

import pytest

from keyheat.detect.rules import load_rules
from keyheat.errors import ConfigError

GOOD = """
[[rules]]
name = "items"
match = { prefix = "item:" }
plan = ["local_cache"]
levels = [{ metric = "reads", enter_per_s = 100, enter_share = 0.01, exit_share = 0.002 }]
"""


def load(tmp_path: Path, text: str) -> list[dict[str, object]]:
    path = tmp_path / "rules.toml"
    path.write_text(text)
    return [rule.to_json() for rule in load_rules(path)]


def test_an_exit_is_half_of_its_enter_unless_given(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD) == [
        {
            "name": "items",
            "match": {"prefix": "item:"},
            "plan": ["local_cache"],
            "min_hot_ms": 1000,
            "cooling_ms": 3000,
            "levels": [
                {
                    "metric": "reads",
                    "enter_per_s": 100.0,
                    "exit_per_s": 50.0,
                    "enter_share": 0.01,
                    "exit_share": 0.002,
                }
            ],
        }
    ]


@pytest.mark.parametrize(
    ("change", "into", "words"),
    [
        (
            '"reads"',
            '"cpu"',
            r"rules\[0\]\.levels\[0\]\.metric: accepted: 'ops', 'reads', 'writes' or 'bytes'",
        ),
        ('plan = ["local_cache"]', 'plan = ["fly"]', r"rules\[0\]\.plan\[0\]: accepted: 'local_cache'"),
        (
            'prefix = "item:"',
            'suffix = "x"',
            r"match\.suffix: no such key; accepted: any, exact, prefix, glob",
        ),
        ('prefix = "item:"', 'prefix = "i", exact = "i"', "exactly one of any"),
        ("enter_per_s = 100, ", "enter_per_s = -1, ", r"enter_per_s: .*greater than 0"),
        ("exit_share = 0.002", "exit_share = 0.5", "exit_share needs an enter_share"),
        (
            'name = "items"',
            'name = "items"\ncolour = 1',
            r"rules\[0\]\.colour: no such key; accepted: name, match",
        ),
        ('name = "items"', "", r"rules\[0\]\.name: is missing"),
        ("[[rules]]", "[[rule]]", "rule: no such key; accepted: rules"),
        ("[[rules]]", "[[rules]", "is not TOML"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, change: str, into: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refusal:
        load(tmp_path, GOOD.replace(change, into))
    assert "rules.toml" in str(refusal.value)


def test_two_rules_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="share the name 'items'"):
        load(tmp_path, GOOD + GOOD)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: No such file"):
        load_rules(tmp_path / "nowhere.toml")
