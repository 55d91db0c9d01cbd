"""`python -m examples.shop`."""

import argparse
import importlib.util
import json
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack

_NEEDED = ("fastapi", "uvicorn", "prometheus_client")


def main() -> int:
    """Play the sale twice and print what it showed; exit status 1 if something was oversold."""
    options = argparse.ArgumentParser(
        prog="python -m examples.shop",
        description="A shop with a flash sale, without and with keyheat, on a Valkey of its own.",
    )
    options.add_argument("--seconds", type=float, default=10.0, help="of each of the two sales (10)")
    options.add_argument("--visitors", type=int, default=64, help="connections to the shop (64)")
    options.add_argument("--json", action="store_true", help="what was measured, as one JSON object")
    options.add_argument("--serve", action="store_true", help="leave the shop with keyheat running")
    options.add_argument("--port", type=int, default=8000, help="of the shop, with --serve (8000)")
    chosen = options.parse_args()
    if not 0 < chosen.seconds <= 600 or not 1 <= chosen.visitors <= 1_000:
        options.error("accepted: --seconds up to 600, --visitors 1 to 1000")
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        sys.stderr.write(f"{', '.join(missing)} is missing: pip install 'keyheat[examples]'\n")
        return 1
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    try:
        return _run(chosen)
    except KeyboardInterrupt:
        return 130


def _run(chosen: argparse.Namespace) -> int:
    from examples.shop import report, sale  # noqa: PLC0415  after it is known that they can be
    from keyheat.errors import KeyheatError  # noqa: PLC0415
    from keyheat.server.binary import find_binary  # noqa: PLC0415
    from keyheat.server.embedded import EmbeddedServer  # noqa: PLC0415

    say = _sayer(is_alone=not chosen.serve)
    load = {"visitors": chosen.visitors, "seconds": chosen.seconds}
    try:
        with ExitStack() as stack:
            say("starting Valkey")
            server = stack.enter_context(EmbeddedServer(binary=find_binary(prefer_wheel=True)))
            with sale.running(server.url, is_protected=False) as port:
                say(f"the sale without keyheat, {chosen.seconds:g} s")
                before = sale.play(server, port, is_protected=False, **load)
            serving = {"port": chosen.port, "is_logging": True} if chosen.serve else {}
            with sale.running(server.url, is_protected=True, **serving) as port:
                say(f"the sale with keyheat, {chosen.seconds:g} s")
                after = sale.play(server, port, is_protected=True, **load)
                say("")
                _print(chosen, report.table(before, after, visitors=chosen.visitors), before, after)
                if chosen.serve:
                    _serve(port)
    except KeyheatError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 1 if before.oversold or after.oversold else 0


def _print(chosen: argparse.Namespace, text: str, *sales: object) -> None:
    names = ("without_keyheat", "with_keyheat")
    if chosen.json:
        told = {name: each.to_json() for name, each in zip(names, sales, strict=True)}  # type: ignore[attr-defined]
        text = json.dumps({"visitors": chosen.visitors, **told}) + "\n"
    sys.stdout.write(text)
    sys.stdout.flush()


def _serve(port: int) -> None:
    sys.stdout.write(
        f"The shop is open at http://127.0.0.1:{port} until Ctrl-C: /item/1, POST /buy/1?visitor=you,\n"
        "/hot (what is hot now) and /metrics (Prometheus).\n"
    )
    sys.stdout.flush()
    signal.pause()


def _sayer(*, is_alone: bool) -> Callable[[str], None]:
    """What is being done, on a terminal: in one line, if nobody else writes there; nothing in a pipe."""
    if not sys.stderr.isatty():
        return lambda _text: None

    def say(text: str) -> None:
        if is_alone:
            sys.stderr.write(f"\r\033[K{text}{' …' if text else ''}")
        elif text:
            sys.stderr.write(f"{text} …\n")
        sys.stderr.flush()

    return say


if __name__ == "__main__":
    sys.exit(main())
