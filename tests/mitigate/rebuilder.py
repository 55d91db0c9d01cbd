"""A process of a test: threads that all miss one key, told over a pipe when to begin.

    python -m tests.mitigate.rebuilder PORT KEY THREADS LOAD_S

Says `ready`, begins at the next line it reads, counts each load under `loads` on the server, and prints
what its threads saw and how long each waited, as JSON.
"""

import json
import sys
import threading
import time

import redis

from keyheat.mitigate.lease import Lease, LeaseSettings
from keyheat.mitigate.loading import Loader


def main() -> None:
    port, key, threads, load_s = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    client = redis.Redis("127.0.0.1", port)
    loader = Loader(client, lease=Lease(client, LeaseSettings(lease_s=1.0)))
    values: list[str] = []
    waited_s: list[float] = []

    def load() -> bytes:
        client.incr("loads")
        time.sleep(load_s)
        return b"loaded"

    def work() -> None:
        began_s = time.monotonic()
        value = loader.get_or_load(key, load, ttl=60)
        waited_s.append(time.monotonic() - began_s)
        values.append(value.decode() if isinstance(value, bytes) else repr(value))

    client.ping()
    print("ready", flush=True)  # noqa: T201 - the protocol with the test
    sys.stdin.readline()
    started = [threading.Thread(target=work) for _ in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    print(json.dumps({"values": values, "waited_s": waited_s}), flush=True)  # noqa: T201 - the protocol with the test
    client.close()


if __name__ == "__main__":
    main()
