"""What marks a lock, and what does not."""

import re
from typing import Any

import pytest
import redis
import valkey as valkey_py

from keyheat.errors import ConfigError
from keyheat.mitigate._patterns import matches
from keyheat.mitigate.lock_evidence import LockEvidence, is_lock_script
from keyheat.server.embedded import EmbeddedServer

TAKE = ("SET", b"lock", b"token", "NX", "PX", 1000)
REDISSON = (
    b"if ((redis.call('exists', KEYS[1]) == 0) or (redis.call('hexists', KEYS[1], ARGV[2]) == 1)) then "
    b"redis.call('hincrby', KEYS[1], ARGV[2], 1); redis.call('pexpire', KEYS[1], ARGV[1]); return nil; end;"
)


@pytest.mark.parametrize("library", [redis, valkey_py])
def test_the_locks_of_the_libraries_are_recognised_by_what_they_send(library: Any, valkey: str) -> None:
    host, _, port = valkey.rpartition(":")
    evidence = LockEvidence()
    kind = library.Redis if library is redis else library.Valkey
    with kind(host=host, port=int(port)) as client:
        send = client.execute_command

        def observed(*args: Any, **options: Any) -> Any:
            evidence.observe(args, 0.0)
            return send(*args, **options)

        client.execute_command = observed
        with client.lock("lock", timeout=10):
            assert evidence.verdict(b"lock", 0.0) == "suspected"
        assert evidence.is_lock(b"lock", 1.0)


@pytest.mark.parametrize(
    "release",
    [
        ("DEL", b"lock"),
        ("UNLINK", b"other", b"lock"),
        (
            "EVAL",
            "if redis.call('GET',KEYS[1])==ARGV[1] then redis.call('DEL',KEYS[1]) end",
            1,
            b"lock",
            b"t",
        ),
        ("DELIFEQ", b"lock", b"token"),
        ("DELEX", b"lock", "IFEQ", b"token"),
    ],
)
def test_nx_with_an_expiry_and_a_release_is_a_lock(release: tuple[Any, ...]) -> None:
    evidence = LockEvidence()
    evidence.observe(TAKE, 0.0)
    assert evidence.verdict(b"lock", 0.0) == "suspected"
    assert evidence.bars_caching(b"lock", 0.0)
    evidence.observe(release, 1.0)
    assert evidence.verdict(b"lock", 1.0) == "lock"
    assert evidence.verdict(b"other", 1.0) == "no"


def test_setnx_and_expire_is_suspected_and_setnx_alone_is_not() -> None:
    evidence = LockEvidence()
    evidence.observe(("SETNX", b"a", b"v"), 0.0)
    assert evidence.verdict(b"a", 0.0) == "no"
    evidence.observe(("EXPIRE", b"a", 10), 0.0)
    assert evidence.verdict(b"a", 0.0) == "suspected"
    evidence.observe(("DEL", b"a"), 1.0)
    assert evidence.is_lock(b"a", 1.0)


def test_ordinary_commands_are_no_evidence() -> None:
    evidence = LockEvidence()
    for args in (
        ("SET", b"k", b"NX", "EX", 3),
        ("SET", b"k", b"v", "NX"),
        ("GET", b"k"),
        ("DEL", b"k"),
        ("EVAL", "return redis.call('GET', KEYS[1])", 1, b"k"),
        ("EVAL", "return 1", 0),
        ("EVALSHA", "0" * 40, 1, b"k"),
        ("DELEX", b"k"),
        (),
    ):
        evidence.observe(args, 0.0)
    assert evidence.verdict(b"k", 0.0) == "no"


def test_a_script_seen_once_is_known_by_its_digest() -> None:
    source = "local v = redis.call('get', KEYS[1]) if v == ARGV[1] then redis.call('unlink', KEYS[1]) end"
    import hashlib  # noqa: PLC0415

    digest = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
    evidence = LockEvidence()
    evidence.observe(("EVALSHA", digest, 1, b"k"), 0.0)
    assert not evidence.is_lock(b"k", 0.0)
    evidence.observe(("SCRIPT LOAD", source), 0.0)
    evidence.observe(("EVALSHA", digest.upper(), 1, b"k"), 0.0)
    assert evidence.is_lock(b"k", 0.0)
    assert is_lock_script(REDISSON)


def test_evidence_outlives_the_use_and_then_fades() -> None:
    evidence = LockEvidence(evidence_s=100, pair_s=10)
    evidence.observe(TAKE, 0.0)
    evidence.observe(("DEL", b"lock"), 11.0)  # too late to be its release
    assert not evidence.is_lock(b"lock", 11.0)
    evidence.observe(TAKE, 20.0)
    evidence.observe(("DEL", b"lock"), 21.0)
    assert evidence.is_lock(b"lock", 121.0)
    assert not evidence.bars_caching(b"lock", 121.1)


def test_rules_have_the_last_word() -> None:
    evidence = LockEvidence(lock_patterns=[b"lock:*"], data_patterns=[b"cache:*"])
    assert evidence.is_lock(b"lock:a", 0.0)
    evidence.observe(("SET", b"cache:a", b"v", "EX", 9, "NX"), 0.0)
    assert not evidence.bars_caching(b"cache:a", 0.0)


def test_memory_is_bounded() -> None:
    evidence = LockEvidence(max_keys=10)
    for number in range(100):
        evidence.observe(("SET", b"%d" % number, b"v", "NX", "EX", 9), 0.0)
    assert evidence.bars_caching(b"99", 0.0)
    assert not evidence.bars_caching(b"89", 0.0)
    assert len(evidence._suspects) == 10


def test_patterns_match_what_the_server_matches(own_server: EmbeddedServer) -> None:
    keys = [b"a", b"ab", b"abc", b"a*c", b"a]c", b"a-c", b"^", b"b\nc", b"", b"\xff", b"a\\c", b"[", b"a[b"]
    patterns = [b"*", b"a*", b"a?c", b"a\\*c", b"[a-c]*", b"[c-a]*", b"[^a]*", b"[ab", b"a[]", b"a[]]c"]
    patterns += [b"[\\^]", b"**c", b"[^", b"a\\", b"\xff", b"a[-]c", b"a\\[b", b"?", b"[a-]*"]
    with own_server.client() as client:
        for key in keys:
            client.set(key, 1)
        for pattern in patterns:
            listed: Any = client.keys(pattern)
            assert sorted(listed) == sorted(key for key in keys if matches(pattern, key)), pattern


def test_a_setting_that_cannot_be_used_is_named() -> None:
    with pytest.raises(ConfigError, match=re.escape("lock_patterns")):
        LockEvidence(lock_patterns=b"lock:*")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="max_keys"):
        LockEvidence(max_keys=0)
