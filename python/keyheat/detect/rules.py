"""Rules: which keys, how hot, what to do; from a file or from a program, checked before anything starts.

The native module checks again and has the last word; these models are where a user's mistake is met
first, with the file, the key and the accepted values in the message.
"""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from keyheat.errors import ConfigError

Metric = Literal["ops", "reads", "writes", "bytes"]
Remedy = Literal["local_cache", "coalesce", "copies", "replica_reads"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Match(_Strict):
    """Which keys a rule is about: exactly one of the four."""

    any: Literal[True] | None = None
    exact: str | None = None
    prefix: str | None = None
    glob: str | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError("accepted: exactly one of any = true, exact, prefix, glob")
        return self


class Level(_Strict):
    """How hot: an absolute rate, a share of the node's traffic, or both together.

    A key enters when every `enter_` given is reached, and may leave below an `exit_`, which is half
    of its `enter_` unless said otherwise.
    """

    metric: Metric
    enter_per_s: Annotated[float, Field(gt=0)] | None = None
    exit_per_s: Annotated[float, Field(ge=0)] | None = None
    enter_share: Annotated[float, Field(gt=0, le=1)] | None = None
    exit_share: Annotated[float, Field(ge=0, le=1)] | None = None

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if self.enter_per_s is None and self.enter_share is None:
            raise ValueError("accepted: enter_per_s, enter_share, or both")
        for name in ("per_s", "share"):
            enter, leave = getattr(self, f"enter_{name}"), getattr(self, f"exit_{name}")
            if leave is not None and (enter is None or leave > enter):
                raise ValueError(f"exit_{name} needs an enter_{name} that is not below it")
        return self

    def to_json(self) -> dict[str, Any]:
        """As the native module takes it, exits filled in."""
        whole: dict[str, Any] = {"metric": self.metric}
        for name in ("per_s", "share"):
            enter, leave = getattr(self, f"enter_{name}"), getattr(self, f"exit_{name}")
            if enter is not None:
                whole |= {f"enter_{name}": enter, f"exit_{name}": enter / 2 if leave is None else leave}
        return whole


class Rule(_Strict):
    """Which keys, how hot, what to do."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    match: Match
    levels: Annotated[list[Level], Field(min_length=1)]
    min_hot_ms: Annotated[int, Field(ge=0)] = 1000
    cooling_ms: Annotated[int, Field(ge=0)] = 3000
    plan: list[Remedy] = ["local_cache", "coalesce"]
    # What a proxy lets each hot key have upstream; 0 is no limit. A protected client ignores them.
    reads_per_s_max: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0
    concurrency_max: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0

    def to_json(self) -> dict[str, Any]:
        """As the native module takes it."""
        unlimited = {name for name in ("reads_per_s_max", "concurrency_max") if getattr(self, name) == 0}
        whole = self.model_dump(exclude={"levels"} | unlimited, exclude_none=True)
        return whole | {"levels": [level.to_json() for level in self.levels]}


class RulesFile(_Strict):
    """A rules file: a list of `[[rules]]` tables; the first that matches a key decides."""

    rules: Annotated[list[Rule], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [rule.name for rule in self.rules]
        if doubles := {name for name in names if names.count(name) > 1}:
            raise ValueError(
                f"two rules share the name {min(doubles)!r}; accepted: a name of its own for each"
            )
        return self


def load_rules(path: Path) -> list[Rule]:
    """Read a rules file.

    Raises:
        ConfigError: It cannot be read, is not TOML, or holds something that is not accepted; the
            message names the file, the key and the accepted values.
    """
    try:
        whole = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the rules file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the rules file {path} is not TOML: {error}") from error
    try:
        return RulesFile.model_validate(whole).rules
    except ValidationError as error:
        raise ConfigError(f"the rules file {path}: {explain(error)}") from error


# What holds where no rules are given; the native module has the same.
DEFAULT_RULE = Rule(
    name="default",
    match=Match(any=True),
    levels=[
        Level(metric="ops", enter_per_s=100, enter_share=0.01),
        Level(metric="bytes", enter_per_s=1 << 20, enter_share=0.05),
    ],
)


def with_plans(rules: Sequence[Rule], plans: Mapping[str, Sequence[str]]) -> list[Rule]:
    """Rules with other plans.

    Args:
        rules: The rules.
        plans: What is done for the keys of a rule, by the rule's name.

    Raises:
        ConfigError: There is no such rule, or no such remedy.
    """
    names = [rule.name for rule in rules]
    if unknown := sorted(set(plans) - set(names)):
        raise ConfigError(f"plans: no rule {unknown[0]!r}; accepted: {', '.join(names)}")
    changed = [
        rule.model_dump(exclude_unset=True) | ({"plan": list(plans[rule.name])} if rule.name in plans else {})
        for rule in rules
    ]
    return checked_rules(changed)


def checked_rules(rules: Sequence[Rule | dict[str, Any]]) -> list[Rule]:
    """Rules as a program gives them.

    Args:
        rules: `Rule` objects, or dicts laid out like the tables of a rules file.

    Raises:
        ConfigError: One is not accepted; the message names it, the key and the accepted values.
    """
    try:
        whole = [rule.model_dump(exclude_unset=True) if isinstance(rule, Rule) else rule for rule in rules]
        return RulesFile.model_validate({"rules": whole}).rules
    except ValidationError as error:
        raise ConfigError(explain(error)) from error


def explain(error: ValidationError) -> str:
    """The first problems as `rules[0].levels[1].metric: …`, without the values that were given."""
    problems = [f"{_where(problem['loc'])}: {_what(dict(problem))}" for problem in error.errors()[:3]]
    more = error.error_count() - len(problems)
    return "; ".join(problems) + (f"; and {more} more" if more else "")


def _where(location: tuple[int | str, ...]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".") or "the file"


def _what(problem: dict[str, Any]) -> str:
    location = problem["loc"]
    if problem["type"] == "extra_forbidden":
        owners: dict[int, type[BaseModel]] = {1: RulesFile, 3: Rule}
        owner = owners.get(len(location), Match if "match" in location else Level)
        return f"no such key; accepted: {', '.join(owner.model_fields)}"
    if problem["type"] == "missing":
        return "is missing"
    message: str = problem["msg"]
    return message.removeprefix("Value error, ").replace("Input should be", "accepted:")
