"""The circuit breaker, against a clock that is moved by hand, and against a server that is down."""

import asyncio
import copy
import threading

import pytest
import redis
import valkey

from keyheat.errors import CircuitOpenError, ConfigError
from keyheat.mitigate.breaker import Breaker, BreakerSettings
from keyheat.server.embedded import EmbeddedServer

SETTINGS = BreakerSettings(calls_min=4, open_s=1, open_max_s=3, jitter=0, recovery_s=0, probes_needed=2)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def tripped(clock: Clock, settings: BreakerSettings = SETTINGS) -> Breaker:
    breaker = Breaker("node", settings, clock=clock)
    for _ in range(settings.calls_min):
        assert breaker.allow()
        breaker.record(ok=False, seconds=0.01)
    return breaker


def probe(breaker: Breaker, *, ok: bool) -> None:
    assert breaker.allow()
    breaker.record(ok=ok, seconds=0.01)


def test_it_opens_when_enough_calls_failed(clock: Clock) -> None:
    breaker = tripped(clock)
    assert (breaker.state, breaker.allow(), breaker.stats().turned_back) == ("open", False, 1)


def test_few_calls_never_open_it(clock: Clock) -> None:
    breaker = Breaker("node", SETTINGS, clock=clock)
    for _ in range(3):
        breaker.record(ok=False, seconds=0.01)
    assert breaker.state == "closed"


def test_failures_older_than_the_window_are_forgotten(clock: Clock) -> None:
    breaker = Breaker("node", SETTINGS, clock=clock)
    for _ in range(3):
        breaker.record(ok=False, seconds=0.01)
    clock.now_s += SETTINGS.window_s + 1
    breaker.record(ok=False, seconds=0.01)
    assert (breaker.state, breaker.stats().calls) == ("closed", 1)


def test_slow_calls_open_it_too(clock: Clock) -> None:
    breaker = Breaker("node", SETTINGS, clock=clock)
    for _ in range(4):
        breaker.record(ok=True, seconds=SETTINGS.slow_s * 2)
    assert breaker.state == "open"


def test_after_the_pause_one_probe_at_a_time_passes(clock: Clock) -> None:
    breaker = tripped(clock)
    clock.now_s += 1.0
    assert breaker.state == "half-open"
    assert [breaker.allow(), breaker.allow()] == [True, False]
    breaker.record(ok=True, seconds=0.01)
    assert breaker.allow()


def test_enough_probes_close_it(clock: Clock) -> None:
    breaker = tripped(clock)
    clock.now_s += 1.0
    probe(breaker, ok=True)
    probe(breaker, ok=True)
    assert (breaker.state, breaker.stats().calls) == ("closed", 0)


def test_each_failed_probe_doubles_the_pause_up_to_the_longest(clock: Clock) -> None:
    breaker = tripped(clock)
    pauses = []
    for _ in range(4):
        pauses.append(breaker.stats().retry_after_s)
        clock.now_s += pauses[-1]
        probe(breaker, ok=False)
    assert pauses == pytest.approx([1, 2, 3, 3])


def test_a_probe_that_never_reports_is_given_up(clock: Clock) -> None:
    breaker = tripped(clock)
    clock.now_s += 1.0
    assert breaker.allow()
    clock.now_s += SETTINGS.probe_timeout_s
    assert breaker.allow()


def test_the_pause_is_jittered(clock: Clock) -> None:
    settings = BreakerSettings(calls_min=1, open_s=1, jitter=0.5)
    pauses = []
    for chance in (0.0, 0.999):
        breaker = Breaker("node", settings, clock=clock, chance=iter([chance]).__next__)
        breaker.record(ok=False, seconds=0.01)
        pauses.append(breaker.stats().retry_after_s)
    assert pauses == pytest.approx([0.5, 1.5], abs=0.01)


def test_recovery_lets_a_growing_share_through(clock: Clock) -> None:
    settings = BreakerSettings(calls_min=4, open_s=1, jitter=0, recovery_s=10, probes_needed=1)
    breaker = tripped(clock, settings)
    clock.now_s += 1.0
    probe(breaker, ok=True)
    assert breaker.state == "recovering"
    passed = []
    for _ in range(4):
        passed.append(sum(breaker.allow() for _ in range(100)))
        clock.now_s += 2.5
    assert passed == pytest.approx([10, 25, 50, 75], abs=1)
    assert breaker.stats().state == "closed"


def test_failing_while_recovering_opens_it_for_longer(clock: Clock) -> None:
    settings = BreakerSettings(calls_min=4, open_s=1, jitter=0, recovery_s=10, probes_needed=1)
    breaker = tripped(clock, settings)
    clock.now_s += 1.0
    probe(breaker, ok=True)
    for _ in range(4):
        breaker.record(ok=False, seconds=0.01)
    assert breaker.stats().retry_after_s == pytest.approx(2)


def test_a_late_failure_from_before_the_pause_says_nothing(clock: Clock) -> None:
    breaker = Breaker("node", SETTINGS, clock=clock)
    late = breaker.acquire()
    for _ in range(4):
        breaker.record(ok=False, seconds=0.01)
    clock.now_s += 1.0
    probe(breaker, ok=True)
    late.failed(ConnectionError())
    assert breaker.state == "half-open"
    probe(breaker, ok=True)
    assert breaker.stats().state == "closed"


@pytest.mark.parametrize(
    ("error", "is_failure"),
    [
        (redis.ConnectionError(), True),
        (redis.TimeoutError(), True),
        (redis.BusyLoadingError(), True),
        (redis.exceptions.ClusterDownError("CLUSTERDOWN"), True),
        (valkey.exceptions.ConnectionError(), True),
        (valkey.exceptions.TimeoutError(), True),
        (OSError(), True),
        (redis.ResponseError("WRONGTYPE"), False),
        (valkey.exceptions.ResponseError("WRONGTYPE"), False),
        (redis.AuthenticationError(), False),
        (ValueError(), False),
    ],
)
def test_only_what_says_the_node_fails_counts(clock: Clock, error: Exception, *, is_failure: bool) -> None:
    breaker = Breaker("node", SETTINGS, clock=clock)
    with pytest.raises(type(error)), breaker.guard():
        raise error
    assert breaker.stats().failures == is_failure


async def test_guard_works_both_ways_and_tells_when_to_come_back(clock: Clock) -> None:
    breaker = Breaker("node", SETTINGS, clock=clock)
    for _ in range(2):
        with pytest.raises(OSError, match="down"), breaker.guard():
            raise OSError("down")
        with pytest.raises(OSError, match="down"):
            async with breaker.guard_async():
                raise OSError("down")
    with pytest.raises(CircuitOpenError, match="node") as caught, breaker.guard():
        pass
    assert caught.value.retry_after_s == pytest.approx(1)
    assert copy.copy(caught.value).retry_after_s == pytest.approx(1)
    with pytest.raises(CircuitOpenError):
        async with breaker.guard_async():
            pass


def test_a_cancelled_probe_says_nothing_and_frees_its_place(clock: Clock) -> None:
    breaker = tripped(clock)
    clock.now_s += 1.0
    with pytest.raises(asyncio.CancelledError), breaker.guard():
        raise asyncio.CancelledError
    assert breaker.state == "half-open"
    assert breaker.allow()


def test_switched_off_it_lets_everything_through(clock: Clock) -> None:
    breaker = tripped(clock)
    breaker.enabled = False
    with breaker.guard():
        pass
    assert breaker.allow()
    breaker.enabled = True
    assert not breaker.allow()


def test_threads_share_it_without_losing_count(clock: Clock) -> None:
    breaker = Breaker("node", BreakerSettings(calls_min=10**9), clock=clock)

    def work() -> None:
        for _ in range(500):
            with breaker.guard():
                pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert breaker.stats().calls == 4000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("window_s", 0),
        ("error_rate", 1.5),
        ("slow_rate", 0),
        ("open_max_s", 0.5),
        ("jitter", 1),
        ("calls_min", 0),
        ("probes_needed", 1.5),
        ("recovery_s", -1),
    ],
)
def test_a_bad_setting_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        BreakerSettings(**{name: value})  # type: ignore[arg-type]


def test_a_server_that_dies_and_returns_is_left_alone_and_found_again(own_server: EmbeddedServer) -> None:
    clock = Clock()
    breaker = Breaker("node", SETTINGS, clock=clock)
    client = own_server.client(retry=None, socket_timeout=1.0)
    own_server.kill()
    for _ in range(4):
        with pytest.raises(redis.ConnectionError), breaker.guard():
            client.ping()
    with pytest.raises(CircuitOpenError), breaker.guard():
        client.ping()
    own_server.restart()
    clock.now_s += 1.0
    for _ in range(2):
        with breaker.guard():
            assert client.ping()
    assert breaker.state == "closed"
    client.close()
