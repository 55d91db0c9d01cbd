"""A proxy as a process of its own, so that it can be stopped, as by `kill -STOP`."""

import contextlib
import json
import os
import re
import signal
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from keyheat.server import child

START_TIMEOUT_S = 20.0
_LISTENS = re.compile(rb"keyheat listens on redis://(\S+), http on http://(\S+)")


class ProxyProcess:
    """`keyheat proxy` before `upstream`; `inside` is put before its command line (`ip netns exec …`)."""

    def __init__(
        self,
        directory: Path,
        upstream: str,
        *,
        inside: Sequence[str] = (),
        host: str = "127.0.0.1",
        **settings: object,
    ) -> None:
        name = f"proxy-{time.monotonic_ns()}"
        self._log, self._config = directory / f"{name}.log", directory / f"{name}.toml"
        self._settings = {
            "listen": f"{host}:0",
            "shards": 2,
            "http": f"{host}:0",
            "upstream": upstream,
            "log": "warn",
            **settings,
        }
        self._write()
        words = ["-m", "keyheat.cli", "proxy", "--config", str(self._config)]
        command = [*inside, sys.executable, *words]
        with self._log.open("wb") as log:
            self.process = child.spawn(command, cwd=str(directory), log=log)
        self.listen, self._http = self._where()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def log(self) -> str:
        """What it has said."""
        return self._log.read_text(errors="replace")

    def stats(self) -> dict[str, int]:
        """Its counters, by the names they have in `/metrics` without `keyheat_` and `_total`."""
        with urllib.request.urlopen(f"http://{self._http}/metrics", timeout=5) as page:
            lines = page.read().decode().splitlines()
        found = (re.fullmatch(r"keyheat_(\w+?)(?:_total)? (\d+)", line) for line in lines)
        return {each[1]: int(each[2]) for each in found if each}

    def stop(self) -> None:
        """SIGSTOP: it keeps its connections and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def reload(self, **settings: object) -> None:
        """Change settings in its file and have it read anew (SIGHUP)."""
        self._settings |= settings
        self._write()
        os.kill(self.pid, signal.SIGHUP)

    def terminate(self) -> None:
        """SIGTERM: it drains and ends."""
        os.kill(self.pid, signal.SIGTERM)

    def close(self) -> None:
        """End it."""
        child.end(self.process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self) -> None:
        """Its settings as TOML, which is JSON where values are simple."""
        lines = [f"{name} = {json.dumps(value)}\n" for name, value in self._settings.items()]
        self._config.write_text("".join(lines))

    def _where(self) -> tuple[str, str]:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := _LISTENS.search(self._log.read_bytes()):
                return found[1].decode(), found[2].decode()
            time.sleep(0.01)
        with contextlib.suppress(OSError):
            self.close()
        raise RuntimeError(f"the proxy did not start: {self.log()[-500:]}")
