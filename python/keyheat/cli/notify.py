"""Telling a service manager how far the proxy is (`sd_notify` of systemd)."""

import contextlib
import os
import socket


def notify(state: str) -> None:
    """Say it (`READY=1`, `STOPPING=1`) to whoever has asked for it by NOTIFY_SOCKET, if anybody has."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        # A name that is in no directory.
        address = "\0" + address[1:]
    # Serving does not depend on being heard.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(state.encode(), address)
