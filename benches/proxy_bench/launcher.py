"""One keyheat proxy as a process: `python launcher.py SETTINGS_JSON`.

It says its address on one line, then answers every line on standard input with its counters as one
line of JSON. It ends when standard input closes, so it cannot outlive the benchmark.
"""

import json
import signal
import sys

from keyheat._keyheat import Proxy


def main() -> None:
    """Serve until standard input closes or SIGTERM comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the benchmark, which then ends us
    proxy = Proxy(sys.argv[1])
    proxy.start()
    print(json.dumps({"listen": proxy.listen}), flush=True)
    for _ in sys.stdin:
        print(proxy.stats(), flush=True)
    proxy.stop()


if __name__ == "__main__":
    main()
