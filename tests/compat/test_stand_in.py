"""`redis-server` with a proxy before it: started as suites start theirs."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from keyheat.server import child
from tests.compat.stand_in import VARIABLE

Eventually = Callable[..., object]
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("mode", "words"), [("through", "keyheat: 'sync'"), ("directly", "")])
def test_it_is_a_server_at_the_port_that_was_asked_for(
    mode: str, words: str, free_port: int, tmp_path: Path, eventually: Eventually
) -> None:
    command = [sys.executable, "-m", "tests.compat.stand_in", "--port", str(free_port), "--save", ""]
    command += ["--requirepass", "secret", "--dir", str(tmp_path), "--maxmemory-policy", "allkeys-lfu"]
    server = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, VARIABLE: mode}, stderr=subprocess.DEVNULL
    )
    try:
        with redis.Redis(port=free_port, password="secret", decode_responses=True) as client:

            def answers() -> bool:
                try:
                    return bool(client.ping())
                except redis.RedisError:
                    return False

            eventually(answers)
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "allkeys-lfu"}
            assert client.set("a", "1")
            assert client.get("a") == "1"
            if words:
                with pytest.raises(redis.ResponseError, match=words):
                    client.execute_command("SYNC")
        with redis.Redis(port=free_port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.get("a")
    finally:
        child.end(server)


def test_what_is_no_single_server_is_the_real_one() -> None:
    command = [sys.executable, "-m", "tests.compat.stand_in", "--version"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert " v=" in said
