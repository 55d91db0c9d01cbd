"""The one door to the native module: settings in, a started proxy out, its errors in keyheat's words."""

import json
from typing import TYPE_CHECKING

from keyheat.errors import AddressInUseError, ConfigError, InternalError, KeyheatError
from keyheat.proxy.settings import ProxySettings

if TYPE_CHECKING:
    from keyheat._keyheat import Proxy


def make_proxy(settings: ProxySettings) -> "Proxy":
    """A native proxy that is not started.

    Raises:
        ConfigError: The native module refuses a setting.
    """
    try:
        from keyheat._keyheat import Proxy  # noqa: PLC0415 - most commands run without it
    except ImportError as error:
        raise InternalError(f"this installation lacks the native module (make setup): {error}") from error
    try:
        return Proxy(json.dumps(settings.to_json()))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def start_proxy(settings: ProxySettings) -> "Proxy":
    """A started native proxy.

    Raises:
        ConfigError: The native module refuses a setting.
        AddressInUseError: The address is taken.
        KeyheatError: It cannot listen there for another reason.
    """
    proxy = make_proxy(settings)
    socket = None if settings.unix_socket is None else str(settings.unix_socket)
    addresses = " or ".join(filter(None, (settings.listen, settings.tls_listen, socket, settings.http)))
    try:
        proxy.start()
    except OSError as error:
        if "in use" in str(error).lower():
            raise AddressInUseError(
                f"cannot listen on {addresses}: the address is in use "
                "(--listen, --unix-socket and --http take others)"
            ) from error
        raise KeyheatError(f"cannot listen on {addresses}: {error}") from error
    return proxy
