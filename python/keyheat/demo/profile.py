"""The popularity the demo's clients read by: a minute of a real trace.

The profile holds how often each key was asked for in each second of the first minute of Twitter's
cluster 52 (attribution in data/cluster52.LICENSE.txt). The order within a second is not in it: it is
shuffled, with a fixed seed, so every client and both halves of the demo see one sequence.
"""

import lzma
import random
from collections import defaultdict
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

VALUE_MAX_BYTES: Final = 4096
_SEED: Final = 52


@dataclass(frozen=True, slots=True)
class Profile:
    """Keys with their value sizes, and the sequence in which they are read, as indexes of `keys`."""

    keys: list[bytes]
    sizes: list[int]
    sequence: list[int]

    def value(self, index: int) -> bytes:
        """The key's value: begins with the key, so that a reader can tell whose it is."""
        key = self.keys[index]
        return (key + b":" + b"." * self.sizes[index])[: max(self.sizes[index], len(key) + 1)]


def load() -> Profile:
    """Read the profile that comes with keyheat."""
    packed = files("keyheat").joinpath("data/cluster52.profile.xz").read_bytes()
    keys: list[bytes] = []
    sizes: list[int] = []
    seconds: defaultdict[int, list[int]] = defaultdict(list)
    for index, line in enumerate(lzma.decompress(packed).decode().splitlines()):
        key, size, counts = line.split(",")
        keys.append(key.encode())
        sizes.append(min(int(size), VALUE_MAX_BYTES))
        for pair in counts.split():
            at, _, count = pair.partition(":")
            seconds[int(at)] += [index] * int(count)
    shuffler = random.Random(_SEED)
    sequence: list[int] = []
    for second in sorted(seconds):
        shuffler.shuffle(seconds[second])
        sequence += seconds[second]
    return Profile(keys, sizes, sequence)
