"""redis-py's own tests with every client wrapped by `keyheat.protect`, beside a run that wraps none."""

import os

import pytest

from tests.compat.redis_py_suite import MODES, main

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("KEYHEAT_REDIS_PY_SUITE") != "1",
        reason="redis-py's tests take most of an hour: asked for by KEYHEAT_REDIS_PY_SUITE=1",
    ),
    pytest.mark.timeout(3600),  # a mode twice, and the first time the environment
]


@pytest.mark.parametrize("mode", MODES)
def test_what_passes_in_redis_pys_tests_unwrapped_passes_wrapped(mode: str) -> None:
    assert main(["--mode", mode, "--wrap"]) == 0
