"""Build python/keyheat/data/cluster52.profile.xz, the popularity the demo's clients read by.

What is kept of the trace: for the accesses of its first minute, each key's id, its size, and how
often it was asked for in each second; the order within a second is not kept.

    python tools/profile_trace.py twitter_cluster52_1m.csv.zst

The trace is that of Twitter's cluster 52 as distributed with libCacheSim; see the licence text beside
the profile. One line a key: `id,size,second:count second:count …`, hottest key first.
"""

import lzma
import sys
from collections import Counter, defaultdict
from pathlib import Path

from keyheat.observe.trace import TraceReader

SECONDS = 60
OUT = Path(__file__).resolve().parent.parent / "python/keyheat/data/cluster52.profile.xz"


def main(trace: str) -> None:
    """Write the profile of the trace's first minute."""
    counts: defaultdict[bytes, Counter[int]] = defaultdict(Counter)
    sizes: dict[bytes, int] = {}
    with TraceReader(trace) as reader:
        for access in reader:
            second = int(access.at_s or 0)
            if second >= SECONDS:
                break
            counts[access.key][second] += 1
            sizes.setdefault(access.key, access.size_bytes)
    hottest_first = sorted(counts, key=lambda key: (-counts[key].total(), key))
    lines: list[str] = []
    for key in hottest_first:
        per_second = " ".join(f"{second}:{count}" for second, count in sorted(counts[key].items()))
        lines.append(f"{key.decode()},{sizes[key]},{per_second}\n")
    OUT.write_bytes(lzma.compress("".join(lines).encode(), preset=9 | lzma.PRESET_EXTREME))
    print(f"{OUT.name}: {len(lines)} keys, {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1])
