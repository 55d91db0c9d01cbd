"""The allowlist lengthens expiries of its entities' keys, and nothing else."""

from typing import Any

import pytest

from keyheat.errors import ConfigError
from keyheat.mitigate.allowlist import Allowlist, Entity
from tests.mitigate.kinds import Clients, done

NOW = 1_800_000_000.0
SHOP = Entity("shop 7", (b"shop:7:*",), NOW - 10, NOW + 10, ttl_s=3600)


def allow(**bounds: Any) -> Allowlist:
    return Allowlist([SHOP], **{"factor_max": 100.0, **bounds})


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        (("SET", b"shop:7:a", b"v", "EX", 60), ("SET", b"shop:7:a", b"v", "EX", 3600)),
        (("set", "shop:7:a", b"v", "px", 60_000, "xx"), ("set", "shop:7:a", b"v", "px", 3_600_000, "xx")),
        (("SET", b"shop:7:a", b"v", b"EX", b"60"), ("SET", b"shop:7:a", b"v", b"EX", 3600)),
        (
            ("SET", b"shop:7:a", b"v", "EXAT", int(NOW) + 60),
            ("SET", b"shop:7:a", b"v", "EXAT", int(NOW) + 3600),
        ),
        (
            ("SET", b"shop:7:a", b"v", "PXAT", int(NOW + 60) * 1000),
            ("SET", b"shop:7:a", b"v", "PXAT", int(NOW + 3600) * 1000),
        ),
        (("SETEX", b"shop:7:a", 60, b"v"), ("SETEX", b"shop:7:a", 3600, b"v")),
        (("PSETEX", b"shop:7:a", 60_000, b"v"), ("PSETEX", b"shop:7:a", 3_600_000, b"v")),
        (("EXPIRE", b"shop:7:a", 60), ("EXPIRE", b"shop:7:a", 3600)),
        (("PEXPIRE", b"shop:7:a", 60_000), ("PEXPIRE", b"shop:7:a", 3_600_000)),
        (("EXPIREAT", b"shop:7:a", int(NOW) + 60), ("EXPIREAT", b"shop:7:a", int(NOW) + 3600)),
        (
            ("PEXPIREAT", b"shop:7:a", int(NOW + 60) * 1000),
            ("PEXPIREAT", b"shop:7:a", int(NOW + 3600) * 1000),
        ),
        (("GETEX", b"shop:7:a", "EX", 60), ("GETEX", b"shop:7:a", "EX", 3600)),
    ],
)
def test_every_way_to_write_an_expiry_is_lengthened(written: tuple[Any, ...], sent: tuple[Any, ...]) -> None:
    listed = allow()
    assert listed.rewrite(written, NOW) == sent
    assert listed.stats().lengthened == 1


@pytest.mark.parametrize(
    "args",
    [
        ("SET", b"shop:7:a", b"v"),  # has no expiry and gets none
        ("SET", b"shop:7:a", b"v", "EX", 7200),  # is longer already
        ("SET", b"shop:7:a", b"v", "NX", "EX", 60),  # may be a lock
        ("SET", b"shop:7:a", b"v", "PX", 60, "NX"),
        ("SET", b"shop:7:a", b"EX", "KEEPTTL"),
        ("SETNX", b"shop:7:a", b"v"),
        ("SET", b"shop:8:a", b"v", "EX", 60),
        ("EXPIRE", b"shop:7:a", 60, "LT"),
        ("EXPIRE", b"shop:7:a", 0),  # deletes
        ("EXPIRE", b"shop:7:a", -1),
        ("EXPIREAT", b"shop:7:a", int(NOW) - 1),
        ("GETEX", b"shop:7:a", "PERSIST"),
        ("SET", b"shop:7:a", b"v", "EX", "soon"),
        ("SET", b"shop:7:a", b"v", "IFEQ", b"EX", b"7"),
        ("SET", b"shop:7:a", b"v", "EX", 60, "ifne", b"7"),
        ("SET", b"shop:7:a", b"v", "EX", 60, "IFDEQ", b"7"),
        ("GET", b"shop:7:a"),
        ("PING",),
        (),
    ],
)
def test_everything_else_is_sent_as_it_was_written(args: tuple[Any, ...]) -> None:
    assert allow().rewrite(args, NOW) == args


def test_only_between_start_and_end() -> None:
    listed = allow()
    for now, expected in ((NOW - 11, 60), (NOW - 10, 3600), (NOW + 9.9, 3600), (NOW + 10, 60)):
        assert listed.ttl_for(b"shop:7:a", 60, now) == expected


def test_bounds_hold_and_nothing_is_ever_shortened() -> None:
    assert allow(factor_max=2).ttl_for(b"shop:7:a", 60, NOW) == 120
    assert allow(ttl_max_s=90).ttl_for(b"shop:7:a", 60, NOW) == 90
    assert allow(ttl_max_s=90).ttl_for(b"shop:7:a", 100, NOW) == 100


def test_patterns_may_be_globs_prefixes_or_names() -> None:
    for match, key, other in (
        ("glob", b"shop:7?", b"shop:71"),
        ("prefix", b"shop:7", b"shop:71"),
        ("exact", b"shop:71", b"shop:71"),
    ):
        entity = Entity("e", (key,), 0, NOW * 2, 3600, match)  # type: ignore[arg-type]
        listed = Allowlist([entity], factor_max=100)
        assert listed.ttl_for(other, 60, NOW) == 3600
        assert listed.ttl_for(b"x" + other, 60, NOW) == 60


def test_entities_come_and_go_and_the_switch_works() -> None:
    listed = Allowlist(factor_max=100)
    listed.add(SHOP)
    listed.add(SHOP)
    assert len(listed.entities) == 1
    listed.enabled = False
    assert listed.rewrite(("EXPIRE", b"shop:7:a", 60), NOW) == ("EXPIRE", b"shop:7:a", 60)
    listed.enabled = True
    listed.remove("shop 7")
    assert listed.ttl_for("shop:7:a", 60, NOW) == 60


@pytest.mark.parametrize("taken", [("SETNX", "shop:7:a", b"v"), (b"set", b"shop:7:a", b"v", "nx", "EX", 5)])
def test_a_lock_keeps_whatever_expiry_it_gets_for_as_long_as_it_is_taken_for_one(
    taken: tuple[Any, ...],
) -> None:
    shop = Entity("shop 7", (b"shop:7:*",), NOW - 10, NOW + 10_000, ttl_s=3600)
    listed = Allowlist(factor_max=100)
    assert listed.rewrite(taken, NOW) == taken
    listed.add(shop)
    for expiry in (
        ("EXPIRE", b"shop:7:a", 60),
        ("SETEX", b"shop:7:a", 60, b"v"),
        ("PEXPIRE", "shop:7:a", 60_000),
    ):
        assert listed.rewrite(expiry, NOW + 3599) == expiry
    assert listed.rewrite(("EXPIRE", b"shop:7:b", 60), NOW) == ("EXPIRE", b"shop:7:b", 3600)
    assert listed.rewrite(("EXPIRE", b"shop:7:a", 60), NOW + 3600) == ("EXPIRE", b"shop:7:a", 3600)
    assert listed.stats().failures == 0


def test_nx_takes_no_lock_where_that_is_said() -> None:
    listed = allow()
    for args in (("SETNX", b"shop:7:a", b"v"), ("SET", b"shop:7:a", b"v", "NX", "EX", 60)):
        assert listed.rewrite(args, NOW, nx_is_lock=False) == args
    assert listed.rewrite(("EXPIRE", b"shop:7:a", 60), NOW) == ("EXPIRE", b"shop:7:a", 3600)


def test_the_latest_locks_are_remembered_and_no_more_than_so_many() -> None:
    listed = allow()
    for number in range(20_000):
        listed.rewrite(("SETNX", f"shop:7:{number}", b"v"), NOW)
    assert listed.rewrite(("EXPIRE", b"shop:7:0", 60), NOW) == ("EXPIRE", b"shop:7:0", 3600)
    assert listed.rewrite(("EXPIRE", b"shop:7:3616", 60), NOW) == ("EXPIRE", b"shop:7:3616", 60)


async def test_a_lock_on_a_server_ends_when_its_owner_said(clients: Clients, valkey: str) -> None:
    client = clients.standalone(valkey)
    listed = allow()
    for args in (("SETNX", "shop:7:lock", "me"), ("EXPIRE", "shop:7:lock", 60)):
        await done(client.execute_command(*listed.rewrite(args, NOW)))
    assert 0 < await done(client.ttl("shop:7:lock")) <= 60


async def test_the_server_takes_what_was_rewritten(clients: Clients, valkey: str) -> None:
    client = clients.standalone(valkey)
    await done(client.execute_command(*allow().rewrite(("SET", "shop:7:a", "v", "EX", 60), NOW)))
    assert 3590 < await done(client.ttl("shop:7:a")) <= 3600


def test_a_setting_that_cannot_be_used_is_named() -> None:
    with pytest.raises(ConfigError, match="factor_max"):
        Allowlist(factor_max=0.5)
    with pytest.raises(ConfigError, match="ttl_max_s"):
        Allowlist(ttl_max_s=0)
    with pytest.raises(ConfigError, match="ends_s"):
        Entity("e", (b"*",), 10, 10, 60)
    with pytest.raises(ConfigError, match="patterns"):
        Entity("e", (), 0, 10, 60)
    with pytest.raises(ConfigError, match="match"):
        Entity("e", (b"*",), 0, 10, 60, "regex")  # type: ignore[arg-type]
