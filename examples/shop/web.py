"""The web application; `python -m examples.shop.web` is how `sale.py` starts it."""

import argparse
import html
import json
import logging
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import prometheus_client
import redis.asyncio
import uvicorn
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse

from examples.shop.shop import ProtectedShop, Shop
from keyheat.client import Handle
from keyheat.integrations import prometheus
from keyheat.integrations.hot_key_log import HotKeyLog
from keyheat.model import printable
from keyheat.server import child


def application(url: str, *, is_protected: bool, is_logging: bool = False) -> FastAPI:
    """The shop as a web application.

    Args:
        url: Its Redis.
        is_protected: Whether keyheat is used.
        is_logging: Whether keys that become hot or cold are told in the log.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        client = redis.asyncio.Redis.from_url(url, max_connections=200)
        async with AsyncExitStack() as stack:
            shop = ProtectedShop(client) if is_protected else Shop(client)
            stack.push_async_callback(shop.close)
            app.state.shop = shop
            if is_protected:
                app.state.registry = prometheus_client.CollectorRegistry()
                app.state.registry.register(prometheus.collector(shop.client))
            if is_protected and is_logging:
                stack.enter_context(HotKeyLog(shop.client))
            yield

    app = FastAPI(lifespan=lifespan)
    app.include_router(_shop)
    if is_protected:
        app.include_router(_keyheat)
    return app


_shop = APIRouter()
_keyheat = APIRouter()


@_shop.get("/item/{item}")
async def _item(item: int, request: Request) -> Response:
    return _json(await request.app.state.shop.page(item))


@_shop.post("/buy/{item}")
async def _buy(item: int, visitor: str, request: Request) -> Response:
    said = await request.app.state.shop.buy(item, visitor)
    return _json({"order": said}, {"sold": 201, "sold out": 410, "busy": 503}[said])


@_shop.get("/figures")
async def _figures(request: Request) -> Response:
    """What the report wants to know."""
    shop = request.app.state.shop
    catalogue = shop.catalogue
    told: dict[str, Any] = {
        "source_loads": catalogue.loads,
        "sale_item_loads": catalogue.loads_of_sale,
        "cpu_s": time.process_time(),
    }
    keyheat: Handle | None = getattr(shop.client, "keyheat", None)
    if keyheat is not None:
        told["stats"] = keyheat.stats()
        hot = [keyheat.explain(each["key"]) for each in keyheat.hot_keys()]
        told["hot_keys"] = [{**each, "key": printable(each["key"])} for each in hot]
    return _json(told)


@_keyheat.get("/metrics")
async def _metrics(request: Request) -> Response:
    return PlainTextResponse(prometheus_client.generate_latest(request.app.state.registry))


@_keyheat.get("/hot")
async def _hot(request: Request) -> Response:
    return HTMLResponse(_hot_page(request.app.state.shop.client.keyheat))


def _json(answer: object, status: int = 200) -> Response:
    return Response(json.dumps(answer), status, media_type="application/json")


def _hot_page(keyheat: Handle) -> str:
    heads = ("key", "reads/s", "writes/s", "share", "answered from memory", "joined", "hot for", "plan")
    rows = [
        (
            printable(key["key"]),
            f"{key['reads_per_s']:,.0f}",
            f"{key['writes_per_s']:,.0f}",
            f"{key['share']:.0%}",
            f"{key['local_hits']:,}",
            f"{key['joins']:,}",
            f"{key['since_s']:.0f} s",
            ", ".join(key["plan"]),
        )
        for key in keyheat.hot_keys()
    ]
    lines = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines) or "<tr><td colspan=8>nothing is hot</td></tr>"
    return (
        "<!doctype html><meta charset=utf-8><meta http-equiv=refresh content=1><title>hot keys</title>"
        "<style>body{font:16px system-ui;margin:2em}td,th{padding:.3em 1em;text-align:left}"
        "tr:nth-child(even){background:#eee}</style><h1>Hot keys of the shop</h1>"
        f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>{body}</table>"
    )


def main() -> None:
    """Serve on a port of 127.0.0.1, and say which."""
    options = argparse.ArgumentParser()
    options.add_argument("--redis", required=True)
    options.add_argument("--port", type=int, default=0)
    options.add_argument("--protected", action="store_true")
    options.add_argument("--log", action="store_true")
    options.add_argument("--parent", type=int, help="end with this process")
    chosen = options.parse_args()
    if chosen.parent:
        child.die_with_parent(chosen.parent)
    if chosen.log:
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
        logging.getLogger("keyheat.hot_keys").setLevel(logging.INFO)
    app = application(chosen.redis, is_protected=chosen.protected, is_logging=chosen.log)
    with socket.create_server(("127.0.0.1", chosen.port)) as listener:
        sys.stdout.write(f"{listener.getsockname()[1]}\n")
        sys.stdout.flush()
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
