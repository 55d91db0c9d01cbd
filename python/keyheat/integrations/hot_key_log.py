"""A line in the log when a key becomes hot, one when it is cold again, and what becomes of tracking.

    log = HotKeyLog(client)
    log.start()

The hot set is looked at now and then from a daemon thread; each change is told once, at INFO, on the logger
`keyheat.hot_keys`. What is hot for less than `interval_s` may never be told. The fields of a record are in
its `keyheat` attribute, for formatters that write JSON.

On the logger `keyheat.tracking` it tells what keeps hot keys from being answered from memory: for each node
without a tracking connection why (WARNING), that connections were lost and are back (INFO), that the
staleness bound was widened because so many clients track one node (WARNING).

A forked child goes on telling, of its own engine, from an empty hot set. Nothing is told while the
interpreter ends. The client is held weakly: without it the log ends.
"""

import contextlib
import logging
import weakref
from types import TracebackType
from typing import Any, Final, Self

from keyheat.client._engine import loads
from keyheat.errors import ConfigError
from keyheat.integrations.figures import handle_of
from keyheat.integrations.redaction import Redact, shown
from keyheat.mitigate._lifetime import in_forked_child
from keyheat.mitigate._ticker import Ticker

_THREAD: Final = "keyheat-hot-log"
_tracking = logging.getLogger("keyheat.tracking")
_FIELDS: Final = ("rule", "plan", "state", "reads_per_s", "writes_per_s", "bytes_per_s", "share", "since_s")


class HotKeyLog:
    """Tells what becomes hot and cold; the module's text says how.

    Args:
        client: A protected client, or its `Handle`.
        interval_s: Seconds between two looks.
        logger: Where to tell it.
        redact: How keys are shown; see `keyheat.integrations.redaction`.

    Raises:
        ConfigError: The client is not protected, or the interval is not above 0.
    """

    def __init__(
        self,
        client: Any,
        interval_s: float = 1.0,
        *,
        logger: logging.Logger | logging.LoggerAdapter[Any] | None = None,
        redact: Redact | None = None,
    ) -> None:
        if not interval_s > 0:
            raise ConfigError("interval_s: accepted: seconds above 0")
        self._binding = weakref.ref(handle_of(client).binding)
        self._logger = logger or logging.getLogger("keyheat.hot_keys")
        self._redact = redact or shown
        self._interval_s = interval_s
        self._hot: dict[bytes, dict[str, Any]] = {}
        self._tracking = _Tracking()
        self._is_started = False
        # What ends the thread with this object, and with the interpreter; a fork replaces it.
        self._ticker = [self._new_ticker()]
        weakref.finalize(self, _stop, self._ticker)
        self._fork_hook = in_forked_child(self._forked)

    def start(self) -> Self:
        """Begin, unless it has begun."""
        self._is_started = True
        self._ticker[0].start()
        return self

    def stop(self) -> None:
        """End; what is hot then is told again after another `start`."""
        self._is_started = False
        self._ticker[0].stop()
        self._hot.clear()

    def look(self) -> None:
        """Look now, and tell what has changed since the last look."""
        binding = self._binding()
        if binding is None:
            return
        self._tracking.look(loads(binding.engine.stats()))
        hot = {each["key"]: each for each in loads(binding.engine.hot())["keys"]}
        earlier, self._hot = self._hot, hot
        for key, told in hot.items():
            if key not in earlier:
                self._tell("hot", key, told)
        for key, told in earlier.items():
            if key not in hot:
                self._tell("cold", key, told)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _tell(self, change: str, key: bytes, told: dict[str, Any]) -> None:
        if not self._logger.isEnabledFor(logging.INFO):
            return
        name = self._redact(key)
        fields = {"change": change, "key": name} | {field: told.get(field) for field in _FIELDS}
        extra = {"keyheat": fields}
        if change == "hot":
            self._logger.info(
                "key %s is hot: %.0f reads/s, %.0f writes/s, %.1f %% of its node (rule %s); %s",
                name,
                told["reads_per_s"],
                told["writes_per_s"],
                100 * told["share"],
                told["rule"],
                " and ".join(told["plan"]) or "nothing is done about it",
                extra=extra,
            )
        else:
            self._logger.info(
                "key %s is cold again: %d reads were answered from memory, %d joined another's",
                name,
                told["local_hits"],
                told["joins"],
                extra=extra,
            )

    def _tick(self) -> None:
        with contextlib.suppress(Exception):  # detection tells of its own failures; a log must not end it
            self.look()

    def _forked(self) -> None:
        self._hot = {}
        self._tracking = _Tracking()
        self._ticker[0] = self._new_ticker()
        if self._is_started:
            self._ticker[0].start()

    def _new_ticker(self) -> Ticker:
        return Ticker(self._tick, self._interval_s, _THREAD)


class _Tracking:
    """What was last told of tracking."""

    def __init__(self) -> None:
        self._reasons: list[str] = []
        self._lost = 0
        self._bound_ms: float | None = None

    def look(self, stats: dict[str, Any]) -> None:
        """Tell what has changed."""
        reasons: list[str] = stats["not_caching"]
        for reason in reasons:
            if reason not in self._reasons:
                _tracking.warning("hot keys are not answered from memory: %s", reason)
        for reason in self._reasons:
            if reason not in reasons:
                _tracking.info("hot keys may be answered from memory again; it was: %s", reason)
        lost = stats["tracking_lost"] - self._lost
        if lost > 0 and reasons == self._reasons:
            _tracking.info("tracking connections were lost %d times, and are back", lost)
        bound_ms = stats["max_staleness_ms"]
        if self._bound_ms is not None and bound_ms != self._bound_ms:
            level = logging.WARNING if bound_ms > self._bound_ms else logging.INFO
            _tracking.log(
                level, "the staleness bound is %.0f ms now, it was %.0f ms", bound_ms, self._bound_ms
            )
        self._reasons, self._lost, self._bound_ms = reasons, stats["tracking_lost"], bound_ms


def _stop(ticker: list[Ticker]) -> None:
    ticker[0].stop()
