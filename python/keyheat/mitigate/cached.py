"""The decorator that keeps a function's results in the cache, for blocking and for coroutine functions.

The key is a template filled from the arguments by name, defaults included, however they were passed:
`"item:{id}"` for `def item(id: int, lang: str = "en")`. What the template does not name is not part of the
key; two calls that differ only in that share a result. bytes go into the key as they are, all else as
`format` writes it. Results keep their types: they are stored behind a header.
"""

import functools
import inspect
import string
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Protocol, Self, TypeVar, overload

from keyheat.errors import ConfigError
from keyheat.mitigate._checks import Seconds, seconds
from keyheat.mitigate.steps import Steps, drive, drive_async

if TYPE_CHECKING:
    from keyheat.mitigate.loading import Loader

P = ParamSpec("P")
R = TypeVar("R")

_FORMATTER: Final = string.Formatter()


class Cached(Protocol[P, R]):
    """A function whose results are kept; call it as before.

    `invalidate`, `refresh` and `key` take the function's arguments (of a method, the object first). Of a
    coroutine function, the call itself, `refresh` and `invalidate` are to be awaited.
    """

    __wrapped__: Callable[P, R]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The kept result, or the function's own."""

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None) -> Any: ...

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function now, and keep the result."""

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Forget the result; a load of it that is under way is not stored."""

    def key(self, *args: P.args, **kwargs: P.kwargs) -> bytes:
        """The key of these arguments."""


class _Kept:
    """One function, and how its calls become steps of the loader."""

    def __init__(self, loader: "Loader", function: Callable[..., Any], template: str, ttl: Seconds) -> None:
        self._loader = loader
        self._function = function
        self._template = template
        self._ttl = ttl
        self._signature = inspect.signature(function)

    def key(self, *args: object, **kwargs: object) -> bytes:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return filled(self._template, bound.arguments)

    def get(self, *args: object, **kwargs: object) -> Steps[Any]:
        load = functools.partial(self._function, *args, **kwargs)
        return self._loader.get_steps(self.key(*args, **kwargs), load, self._ttl, keeps_types=True)

    def refresh(self, *args: object, **kwargs: object) -> Steps[Any]:
        load = functools.partial(self._function, *args, **kwargs)
        return self._loader.refresh_steps(self.key(*args, **kwargs), load, self._ttl, keeps_types=True)

    def invalidate(self, *args: object, **kwargs: object) -> Steps[None]:
        return self._loader.invalidate_steps(self.key(*args, **kwargs))

    def as_function(self) -> Any:
        # A real function, so that it becomes a method in a class and frameworks see what it is.
        wrapper = _driven_async(self.get) if self._loader.is_asyncio else _driven(self.get)
        functools.update_wrapper(wrapper, self._function)
        way = _driven_async if self._loader.is_asyncio else _driven
        wrapper.key, wrapper.refresh, wrapper.invalidate = self.key, way(self.refresh), way(self.invalidate)
        return wrapper


def _driven(steps: Callable[..., Steps[Any]]) -> Any:
    def call(*args: object, **kwargs: object) -> object:
        return drive(steps(*args, **kwargs))

    return call


def _driven_async(steps: Callable[..., Steps[Any]]) -> Any:
    async def call(*args: object, **kwargs: object) -> object:
        return await drive_async(steps(*args, **kwargs))

    return call


class Decorator:
    """What `Loader.cached` returns."""

    def __init__(self, loader: "Loader", template: str, ttl: Seconds) -> None:
        self._loader = loader
        self._template = template
        self._ttl = ttl

    def __call__(self, function: Callable[P, R]) -> Cached[P, R]:
        """Wrap a function.

        Raises:
            ConfigError: The template names no parameter of it, or it does not fit the loader's client.
        """
        unknown = _names(self._template) - set(inspect.signature(function).parameters)
        if unknown:
            raise ConfigError(
                f"the template {self._template!r} names {', '.join(sorted(unknown))}: "
                f"accepted are the parameters of {function.__qualname__}"
            )
        if inspect.iscoroutinefunction(function) != self._loader.is_asyncio:
            kinds = ("a coroutine function", "an asyncio client")
            raise ConfigError(
                f"{function.__qualname__}: {kinds[0]} needs {kinds[1]}, and a plain one a blocking client"
            )
        kept: Cached[P, R] = _Kept(self._loader, function, self._template, self._ttl).as_function()
        return kept


def cached(loader: "Loader", template: str, *, ttl: Seconds) -> Decorator:
    """A decorator that keeps a function's results; see `Loader.cached`.

    Raises:
        ConfigError: The ttl is not a positive time, or the template is not one.
    """
    seconds("ttl", ttl)
    _names(template)
    return Decorator(loader, template, ttl)


def filled(template: str, arguments: "dict[str, Any]") -> bytes:
    """The template with its fields replaced.

    >>> filled("item:{id}", {"id": 7})
    b'item:7'
    """
    pieces: list[bytes] = []
    for literal, name, spec, conversion in _FORMATTER.parse(template):
        pieces.append(literal.encode())
        if name is not None:
            value = _FORMATTER.convert_field(_FORMATTER.get_field(name, (), arguments)[0], conversion)
            is_raw = isinstance(value, bytes) and not spec
            pieces.append(value if is_raw else format(value, spec or "").encode())
    return b"".join(pieces)


def _names(template: str) -> set[str]:
    """The parameters a template names."""
    try:
        fields = [name for _, name, _, _ in _FORMATTER.parse(template) if name is not None]
    except ValueError as error:
        raise ConfigError(f"the template {template!r} cannot be read: {error}") from error
    roots = {name.partition(".")[0].partition("[")[0] for name in fields}
    if not all(root.isidentifier() for root in roots):
        raise ConfigError(f"the template {template!r} has a field without a name: name a parameter in each")
    return roots
