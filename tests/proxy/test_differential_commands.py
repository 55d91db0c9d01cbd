"""Every kind of command at random through the proxy: what the server itself answers, reply by reply."""

import random

import pytest

from tests.proxy.differential import Run, started

SECONDS = 4.0


@pytest.mark.parametrize("behind", ["standalone", "cluster"])
def test_every_kind_of_command_is_answered_as_by_the_server(behind: str, server_binary: str) -> None:
    seed = random.randrange(1 << 30)
    with started(behind, server_binary) as (proxy, oracle):
        run = Run(proxy, oracle, behind, seed, SECONDS)
        run.go()
    assert run.wrong == []  # each names the seed
    assert run.compared.total() > 2000
