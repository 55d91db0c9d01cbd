"""The soak: servers fail in every way while clients of the proxy check each reply, each write and each age.

    make soak                                        ten minutes of everything
    .venv/bin/python -m tests.soak --seconds 60 --only 'cluster'
    .venv/bin/python -m tests.soak --only staleness --plant deaf     (finds it, status 1)

Stages are played round after round, each with a seed of its own that its line names: `--seed` and `--only`
repeat it. Checked: no reply is that of another request, no write is lost that was acknowledged (but by the
servers themselves, which is counted), none is carried out twice, nothing read is older than 100 ms, and after
a failover the first write goes through within a second of the new primary saying that it is one.
"""

import argparse
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.soak import calamities, failover, partition, reshard
from tests.soak.crowd import Told

Stage = Callable[[float, int, Path, "str | None"], Told]
# Seconds that a stage takes beside what it is given: starting servers, failing over.
TURN_S = 8.0


def _failover(kind: str, how: str) -> Stage:
    return lambda seconds, seed, directory, plant: failover.Failover(kind, how, seed, directory, plant).run(
        seconds
    )


STAGES: dict[str, tuple[Stage, tuple[str, ...]]] = {
    "staleness": (calamities.run, calamities.PLANTS),
    "sentinel-killed": (_failover("sentinel", "killed"), failover.PLANTS),
    "cluster-paused": (_failover("cluster", "paused"), failover.PLANTS),
    "partition": (partition.run, partition.PLANTS),
    "sentinel-paused": (_failover("sentinel", "paused"), failover.PLANTS),
    "reshard": (reshard.run, reshard.PLANTS),
    "cluster-killed": (_failover("cluster", "killed"), failover.PLANTS),
}


def play(name: str, seconds: float, seed: int, plant: str | None = None) -> Told:
    """One stage once; whatever it raises is wrong too."""
    with tempfile.TemporaryDirectory(prefix="keyheat-soak-") as directory:
        try:
            return STAGES[name][0](seconds, seed, Path(directory), plant)
        except Exception as error:  # noqa: BLE001  a stage that cannot be played must say so
            return Told(name, seed, wrong=[f"could not be played: {error!r}"])


def main() -> int:
    """Play until time is up; 1 if anything was wrong."""
    options = _options()
    seed = options.seed if options.seed is not None else random.randrange(1 << 30)
    names = [name for name in STAGES if re.search(options.only, name)]
    if options.plant:
        names = [name for name in names if options.plant in STAGES[name][1]]
    if "partition" in names and (why := partition.missing()):
        _say(why)
        names.remove("partition")
    if not names:
        sys.stderr.write("nothing to play" + "\n")
        return 2
    _say(f"seed {seed}, {options.seconds:g} s of {', '.join(names)}")
    wrong, played, until = 0, 0, time.monotonic() + options.seconds
    while played == 0 or time.monotonic() < until:
        name = names[played % len(names)]
        told = play(name, TURN_S, seed + played, options.plant)
        _say(told.line())
        wrong, played = wrong + bool(told.wrong), played + 1
    _say(f"{played} stages played, {wrong} MISS (seed {seed})")
    return int(wrong > 0)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="no stage begins after so long (600)")
    parser.add_argument("--seed", type=int, help="of everything; by default another each time")
    parser.add_argument("--only", default="", metavar="REGEX", help="only stages with such names")
    plants = sorted({plant for _, some in STAGES.values() for plant in some})
    parser.add_argument("--plant", choices=plants, help="a fault that must be found")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
