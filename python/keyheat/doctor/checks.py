"""The checks of `keyheat doctor`: each is really tried on the server, none changes its settings.

The one thing written is the tracking probe: a key `keyheat:doctor:<random>` of one byte that expires
after seconds, because whether invalidations arrive is only known once one has.
"""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import redis
from redis.crc import key_slot

from keyheat.proxy.url import UpstreamUrl
from keyheat.server.connect import first_connection, hello_fields, mapped, widest_connection

_PUSH_TIMEOUT_S: Final = 2.0
_PROBE_TTL_S: Final = 5
_PROBE_ATTEMPTS: Final = 100_000


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report: what was tried, how it went, what that leaves."""

    name: str
    is_ok: bool
    found: str
    leaves: str


@dataclass(slots=True)
class Examination:
    """What was found out about one server."""

    server: str
    version: str = "unknown"
    mode: str = "unknown"
    user: str = "default"
    checks: list[Check] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The report as one object."""
        whole = asdict(self)
        whole["checks"] = [
            {"name": each.name, "ok": each.is_ok, "found": each.found, "leaves": each.leaves}
            for each in self.checks
        ]
        whole["features"] = {each.name: each.is_ok for each in self.checks}
        return whole


class Doctor:
    """Examines one server as one user.

    Raises:
        UpstreamError: The server cannot be reached or refuses the user altogether.
    """

    def __init__(self, url: UpstreamUrl) -> None:
        self._url = url
        self._client = widest_connection(url)
        self._hello = hello_fields(self._client)
        self._info: dict[str, Any] = {}
        self._errors: dict[str, str] = {}
        self.examination = Examination(str(url), user=url.username or "default")

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def checks(self) -> Iterator[Check]:
        """Run every check in turn."""
        each: Callable[[], Check]
        for each in (
            self._version,
            self._mode,
            self._tracking,
            self._eviction,
            self._hotkeys,
            self._monitor,
            self._modules,
            self._rights,
        ):
            try:
                check = each()
            except redis.ConnectionError as error:
                raise mapped(error, self._url.addresses[0]) from error
            self.examination.checks.append(check)
            yield check

    def _try(self, *words: str | bytes | int) -> Any:  # noqa: ANN401 - whatever the server answers
        """The answer, or None with the error's text in `_errors` under the first words."""
        try:
            return self._client.execute_command(*words)
        except redis.ConnectionError:
            raise
        except redis.RedisError as error:
            self._errors[" ".join(str(word) for word in words[:2])] = str(error)
            return None

    def _why(self, *words: str) -> str:
        error = self._errors.get(" ".join(words), "")
        if _is_refused(error):
            return "the ACL forbids it"
        return "unknown to this server" if "unknown" in error.lower() else error.split("\n", 1)[0][:100]

    def _version(self) -> Check:
        self._info = dict(self._try("INFO") or {})
        found = self.examination
        if name := self._info.get("valkey_version"):
            found.version = f"Valkey {name}"
        elif name := self._info.get("redis_version"):
            found.version = f"Redis {name}"
        elif name := self._hello.get("version"):
            server = self._hello.get("server", "unknown").capitalize()
            found.version = f"{server} {name} by its HELLO (INFO: {self._why('INFO')})"
        else:
            return Check("version", False, f"unknown (INFO: {self._why('INFO')})", "keyheat tries its best")
        major = int(str(name).split(".", 1)[0])
        leaves = "proxy, hot keys" if major >= 6 else "proxy and hot keys; no RESP3, so no local cache"
        return Check("version", major >= 6, found.version, leaves)

    def _mode(self) -> Check:
        found = self.examination
        found.mode = str(self._info.get("server_mode") or self._info.get("redis_mode") or "")
        found.mode = found.mode or self._hello.get("mode", "unknown")
        role = self._try("ROLE")
        role_name = _text(role[0]) if role else "unknown role"
        role_name = {"master": "primary", "slave": "replica"}.get(role_name, role_name)
        if found.mode == "cluster":
            known = self._cluster_info()
            is_ok = known.get("cluster_state") == "ok"
            size = known.get("cluster_size", "?")
            state = known.get("cluster_state", "unknown")
            words = f"Cluster of {size} primaries, state {state}; this node: {role_name}"
            return Check(
                "mode", is_ok, words, "routing by slot" if is_ok else "commands fail until the state is ok"
            )
        if found.mode == "sentinel":
            return Check("mode", False, "a Sentinel, not a data server", "give keyheat the primary's address")
        if role_name == "replica":
            return Check(
                "mode",
                False,
                f"{found.mode}, replica",
                "give keyheat the primary: it fills from primaries only",
            )
        return Check("mode", True, f"{found.mode}, {role_name}", "one upstream server")

    def _cluster_info(self) -> dict[str, str]:
        answer = self._try("CLUSTER", "INFO")
        if isinstance(answer, dict):
            return {_text(name): _text(value) for name, value in answer.items()}
        return dict(line.split(":", 1) for line in _text(answer or b"").split() if ":" in line)

    def _tracking(self) -> Check:
        is_ok, found = self._tracked()
        leaves = (
            "local cache with bounded staleness"
            if is_ok
            else "no local cache: reads of hot keys go to the server"
        )
        return Check("tracking", is_ok, found, leaves)

    def _tracked(self) -> tuple[bool, str]:
        pushes: list[Any] = []
        key = self._probe_key()
        try:
            with first_connection(self._url, protocol=3) as watcher:
                connection: Any = watcher.connection
                connection._parser.set_invalidation_push_handler(pushes.append)  # noqa: SLF001 - redis-py offers no other way
                watcher.execute_command("CLIENT", "TRACKING", "ON")
                if key is None:
                    return True, "RESP3 tracking can be switched on (no key of this node to try it with)"
                if why := self._probe_refused(watcher, key):
                    return True, f"RESP3 tracking can be switched on; no invalidation tried ({why})"
                sent_s = time.monotonic()
                self._try("SET", key, "2", "EX", _PROBE_TTL_S)
                while not pushes and time.monotonic() - sent_s < _PUSH_TIMEOUT_S:
                    watcher.execute_command("PING")
                self._try("DEL", key)
                if not pushes:
                    return False, "RESP3 tracking is on, but no invalidation came"
                return (
                    True,
                    f"RESP3 invalidation came {1000 * (time.monotonic() - sent_s):.1f} ms after the write",
                )
        except redis.ConnectionError as error:
            return False, f"RESP3 refused: {error}"
        except redis.RedisError as error:
            return False, "CLIENT TRACKING: " + (
                "the ACL forbids it" if _is_refused(str(error)) else str(error)
            )

    def _probe_refused(self, watcher: "redis.Redis", key: str) -> str | None:
        """Write and read the probe; the reason if this user may not, or this node takes no writes."""
        if self._try("SET", key, "1", "EX", _PROBE_TTL_S) is None:
            return f"SET: {self._why('SET', key)}"
        try:
            watcher.execute_command("GET", key)
        except redis.ResponseError as error:
            return f"GET: {error}"
        return None

    def _probe_key(self) -> str | None:
        """A key that this node serves; a Cluster node serves only some."""
        if self.examination.mode != "cluster":
            return f"keyheat:doctor:{secrets.token_hex(8)}"
        own = _text(self._try("CLUSTER", "MYID") or b"")
        slots = self._slots_of(own)
        if not slots:
            return None
        candidates = (f"keyheat:doctor:{secrets.token_hex(8)}" for _ in range(_PROBE_ATTEMPTS))
        return next((key for key in candidates if key_slot(key.encode()) in slots), None)

    def _slots_of(self, node_id: str) -> set[int]:
        slots: set[int] = set()
        with suppress(redis.ResponseError):
            for line in _text(self._client.execute_command("CLUSTER", "NODES")).splitlines():
                words = line.split()
                if words and words[0] == node_id and "master" in words[2]:
                    for word in words[8:]:
                        if not word.startswith("["):
                            first, _, last = word.partition("-")
                            slots.update(range(int(first), int(last or first) + 1))
        return slots

    def _eviction(self) -> Check:
        policy = str(self._info.get("maxmemory_policy") or "unknown")
        is_lfu = policy.endswith("-lfu")
        leaves = (
            "`OBJECT FREQ`: hot keys found by scanning"
            if is_lfu
            else "no hot keys by scanning (needs an -lfu policy)"
        )
        return Check("lfu", is_lfu, f"maxmemory-policy {policy}", leaves)

    def _hotkeys(self) -> Check:
        self._try("HOTKEYS", "GET")
        error = self._errors.get("HOTKEYS GET", "")
        is_ok = "unknown command" not in error.lower() and not _is_refused(error)
        found = "the server knows HOTKEYS" if is_ok else f"HOTKEYS: {self._why('HOTKEYS', 'GET')}"
        leaves = "hot keys from the server itself" if is_ok else "hot keys are counted by keyheat"
        return Check("hotkeys", is_ok, found, leaves)

    def _monitor(self) -> Check:
        error = ""
        with first_connection(self._url) as client:
            connection: Any = client.connection
            try:
                connection.send_command("MONITOR")
                connection.read_response()
            except redis.RedisError as refusal:
                error = str(refusal)
        found = (
            "MONITOR is allowed"
            if not error
            else f"MONITOR: {'the ACL forbids it' if _is_refused(error) else error}"
        )
        leaves = (
            "watching without a proxy (costs the server CPU)" if not error else "no watching without a proxy"
        )
        return Check("monitor", not error, found, leaves)

    def _modules(self) -> Check:
        loaded = self._try("MODULE", "LIST")
        if loaded is None:
            return Check(
                "modules", False, f"MODULE LIST: {self._why('MODULE', 'LIST')}", "no module in the server"
            )
        names = sorted(_module_name(module) for module in loaded)
        answer = self._try("CONFIG", "GET", "enable-module-command") or {}
        loading = {_text(name): _text(value) for name, value in dict(answer).items()}.get(
            "enable-module-command", "unknown"
        )
        found = f"{', '.join(names) or 'none'} loaded; MODULE LOAD at run time: {loading}"
        is_ok = loading in ("yes", "local")
        leaves = "a module can be loaded now" if is_ok else "a module needs `loadmodule` in the configuration"
        return Check("modules", is_ok, found, leaves)

    def _rights(self) -> Check:
        who = self._try("ACL", "WHOAMI")
        if who is not None:
            self.examination.user = _text(who)
        key = self._probe_key() or "keyheat:doctor"
        tried: dict[str, tuple[str | int, ...]] = {
            "GET": ("GET", key),
            "EXISTS": ("EXISTS", key),
            "PTTL": ("PTTL", key),
            "ROLE": ("ROLE",),
            "INFO": ("INFO", "server"),
            "CLIENT TRACKING": ("CLIENT", "TRACKING", "OFF"),
        }
        if self.examination.mode == "cluster":
            tried["CLUSTER SLOTS"] = ("CLUSTER", "SLOTS")
        refusals = {name: self._refusal(words) for name, words in tried.items()}
        lacking = {name for name, refusal in refusals.items() if refusal and "key" not in refusal}
        user = f"user {self.examination.user!r}"
        if lacking:
            return Check("acl", False, f"{user} lacks {', '.join(sorted(lacking))}", _left_without(lacking))
        if any(refusals.values()):
            found = f"{user} may do all keyheat needs, on some key patterns only"
            return Check("acl", True, found, "everything above, for those keys")
        return Check("acl", True, f"{user} may do all keyheat needs", "everything above")

    def _refusal(self, words: tuple[str | int, ...]) -> str | None:
        try:
            self._client.execute_command(*words)
        except redis.ConnectionError:
            raise
        except redis.RedisError as error:
            return str(error) if _is_refused(str(error)) else None
        return None


def _left_without(lacking: set[str]) -> str:
    if "CLUSTER SLOTS" in lacking:
        return "no proxy: the Cluster's layout cannot be read"
    if lacking & {"GET", "EXISTS", "PTTL", "ROLE", "CLIENT TRACKING"}:
        return "proxy and hot keys; no local cache"
    return "proxy, hot keys and local cache"


def _is_refused(error: str) -> bool:
    return "NOPERM" in error or "no permissions" in error.lower()


def _module_name(module: Any) -> str:  # noqa: ANN401 - a dict in RESP3, a flat list in RESP2
    fields = module if isinstance(module, dict) else dict(zip(module[::2], module[1::2], strict=False))
    return _text(fields.get(b"name", fields.get("name", b"?")))


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
