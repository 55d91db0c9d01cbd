"""What the protected Python client costs and saves, beside the client alone and redis-py's own cache.

    .venv/bin/python benches/client.py            every case, about five minutes
    .venv/bin/python benches/client.py --only hits

Each case is a process or a loop of its own and prints one line per figure; `--json` one object per line.
Results go to `benches/results/client.md` and `.json` unless `--only` is given. Cases that need what this
machine lacks (valgrind; a Redis server of 7.4 or later, named by KEYHEAT_BENCH_REDIS) are left out by name.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from client_bench import counting, crowds, hits, invalidation, load
from client_bench.figure import Figure, LeftOutError
from client_bench.figure import markdown as as_markdown

RESULTS: Final = Path(__file__).resolve().parent / "results"

CASES: Final[dict[str, Callable[[], Iterator[Figure]]]] = {
    "hits": hits.figures,
    "counting": counting.figures,
    "invalidation": invalidation.figures,
    "heartbeats": load.heartbeats,
    "crowds": crowds.figures,
    "rewrites": load.rewrites,
    "balance": load.balance,
}


def main() -> int:
    """Run the cases; 1 if one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=sorted(CASES), action="append", help="run these cases only")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    options = parser.parse_args()
    found: list[Figure] = []
    is_failed = False
    for name in options.only or CASES:
        try:
            for figure in CASES[name]():
                found.append(figure)
                print(json.dumps(figure.as_dict()) if options.json else figure, flush=True)
        except LeftOutError as why:
            print(f"{name}: left out: {why}", file=sys.stderr)
        except Exception as error:  # noqa: BLE001  the other cases are worth having
            is_failed = True
            print(f"{name}: failed: {type(error).__name__}: {error}", file=sys.stderr)
    if not options.only:
        RESULTS.mkdir(exist_ok=True)
        text = json.dumps([figure.as_dict() for figure in found], indent=1)
        (RESULTS / "client.json").write_text(text + "\n", encoding="utf-8")
        (RESULTS / "client.md").write_text(as_markdown(found, os.cpu_count() or 0), encoding="utf-8")
    return int(is_failed)


if __name__ == "__main__":
    sys.exit(main())
