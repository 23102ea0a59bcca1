"""From an encoded request to an encoded reply: the generated `run` of each method.

`run(view)` of a call decodes the arguments, calls the handler and returns the encoded reply (`bytes`), a
`Deferred` of it, or, for an async handler, a coroutine of it. Of a stream it returns a generator, plain or
async, of encoded items; of an upload, `run(view, items)` takes an async iterator of encoded items and returns
a coroutine. Nothing of `view` is kept. All of them raise only `AtollError`s: what a handler raises and its
interface does not declare becomes `InternalFault`, and its traceback goes to the log.
"""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any

import msgspec
import trio

from . import codec, discretion
from .codec import Decode, Encode
from .context import Log, back_in_hand, current_or_none
from .deferred import Deferred
from .errors import AtollError, BadRequest, DecodeFaults, Failure, InternalFault
from .generated import compiled, generate
from .method import MethodSpec
from .transport import Translator

Run = Callable[..., Any]
FEW = 5
"""Arguments. What a method of more of them needs is compiled by its server's process."""

_CALL = """
def run(
    view, _spec=_spec, _decode=_decode, _handler=_handler, _encode=_encode,
    _Deferred=_Deferred, _faults=_faults, _AtollError=_AtollError,
):
    try:
        arguments = _decode(view)
    except _faults as fault:
        raise _bad_request(_spec, fault) from None
    try:
        reply = _handler({arguments})
    except _AtollError as error:
        _check_declared(_spec, error)
        raise
    except Exception as error:
        raise internal(_spec, error) from error
    if reply.__class__ is _Deferred:
        return _later(reply)
    try:
        return _encode(reply)
    except Exception as error:
        return _other(reply, error)
"""

_START = """
def run(
    view, *items, _spec=_spec, _decode=_decode, _handler=_handler, _wrap=_wrap, _faults=_faults
):
    try:
        arguments = _decode(view)
    except _faults as fault:
        raise _bad_request(_spec, fault) from None
    return _wrap({arguments})
"""


def build_run(spec: MethodSpec, handler: Callable[..., Any], translator: Translator | None) -> Run:
    """The `run` of a method with its handler, a bound method of the server."""
    encode = codec.encoder(spec, translator)
    names = spec.arguments.__struct_fields__
    passed = _passed(names, spec.keywords)
    namespace: dict[str, Any] = {
        "_spec": spec,
        "_decode": codec.decoder(spec, "arguments", translator),
        "_handler": handler,
        "_encode": encode,
        "_Deferred": Deferred,
        "_faults": DecodeFaults,
        "_AtollError": AtollError,
        "_bad_request": bad_request,
        "_check_declared": _check_declared,
        "internal": internal,
        "_later": lambda reply: _later(spec, encode, reply),
        "_other": lambda reply, error: _other(spec, encode, reply, error),
    }
    if spec.kind == "call" and not inspect.iscoroutinefunction(handler):
        source = _CALL.format(arguments=passed)
    else:
        namespace["_wrap"] = _wrapper(spec, handler, encode, translator)
        source = _START.format(arguments=f"*items, {passed}" if spec.kind == "upload" else passed)
    run: Run = generate(f"server of {spec.label}", source, namespace, names)["run"]
    return run


def _passed(names: Sequence[str], keywords: frozenset[str] = frozenset()) -> str:
    """The arguments of a handler's call, by their places."""
    return ", ".join(
        f"{name}=arguments._{place}" if name in keywords else f"arguments._{place}"
        for place, name in enumerate(names)
    )


def compile_ahead() -> None:
    """What most methods need, those of few arguments."""
    for count in range(FEW + 1):
        passed = _passed([""] * count)
        for source in (_CALL.format(arguments=passed), _START.format(arguments=passed)):
            compiled(source)


def _wrapper(
    spec: MethodSpec, handler: Callable[..., Any], encode: Encode, translator: Translator | None
) -> Callable[..., Any]:
    if spec.kind == "call":
        return partial(_reply, spec, encode, handler)
    if spec.kind == "upload":
        decode = codec.decoder(spec, "item", translator)

        def take(items: AsyncIterator[bytes], *args: Any, **kwargs: Any) -> Any:
            return _reply(spec, encode, handler, _Decoded(spec, decode, items), *args, **kwargs)

        return take

    def produce(*args: Any, **kwargs: Any) -> Any:
        try:
            source = handler(*args, **kwargs)
        except Exception as error:
            raise as_reply(spec, error) from error
        return (
            _encoded_async(spec, encode, source)
            if hasattr(source, "__aiter__")
            else _encoded(spec, encode, source)
        )

    return produce


async def _reply(
    spec: MethodSpec, encode: Encode, begin: Callable[..., Awaitable[Any]], /, *args: Any, **kwargs: Any
) -> bytes:
    """`begin` runs in here: of a call that is refused before its first step, no handler's coroutine is left unawaited."""
    try:
        return encode(await begin(*args, **kwargs))
    except AtollError as error:
        _check_declared(spec, error)
        raise
    except Exception as error:
        raise internal(spec, error) from error
    except BaseExceptionGroup as group:
        _check_cancelled(spec, group)
        raise


def _later(spec: MethodSpec, encode: Encode, reply: Deferred[Any]) -> Deferred[bytes]:
    encoded: Deferred[bytes] = Deferred()
    # What a reply carries is granted to the caller of the call in hand: of this one, not of whichever completes it.
    call = current_or_none() if spec.carries else None

    def succeed(value: Any) -> None:
        try:
            if call is None:
                data = encode(value)
            else:
                with back_in_hand(call):
                    data = encode(value)
        except Exception as error:
            encoded.fail(
                as_reply(spec, error)
            )  # what it carries may be refused, as in a reply that is given at once
        else:
            encoded.complete(data)

    reply.react(succeed, lambda error: encoded.fail(as_reply(spec, error)))
    return encoded


def _other(spec: MethodSpec, encode: Encode, reply: Any, error: Exception) -> Any:
    """A plain handler returned what cannot be encoded: something to wait for, or a bug."""
    if isinstance(reply, Deferred):
        return _later(spec, encode, reply)
    if inspect.isawaitable(reply):
        return _reply(spec, encode, lambda: reply)
    if isinstance(error, AtollError):
        raise error
    raise internal(spec, error) from error


async def _encoded_async(
    spec: MethodSpec, encode: Encode, source: AsyncIterator[Any]
) -> AsyncIterator[bytes]:
    try:
        async for item in source:
            yield encode(item)
    except AtollError as error:
        _check_declared(spec, error)
        raise
    except Exception as error:
        raise internal(spec, error) from error
    except BaseExceptionGroup as group:
        _check_cancelled(spec, group)
        raise
    finally:
        close = getattr(source, "aclose", None)
        if close is not None:
            try:
                await close()
            except Exception as error:  # nobody took it to its end
                raise as_reply(spec, error) from error
            except BaseExceptionGroup as group:
                _check_cancelled(spec, group)
                raise


def _encoded(spec: MethodSpec, encode: Encode, source: Iterator[Any]) -> Iterator[bytes]:
    try:
        for item in source:
            yield encode(item)
    except AtollError as error:
        _check_declared(spec, error)
        raise
    except Exception as error:
        raise internal(spec, error) from error
    finally:
        close = getattr(source, "close", None)
        if close is not None:
            try:
                close()
            except Exception as error:  # nobody took it to its end
                raise as_reply(spec, error) from error


class _Decoded:
    """The items of an upload as its handler takes them. No generator: a handler may leave it unfinished."""

    __slots__ = ("_decode", "_items", "_spec")

    def __init__(self, spec: MethodSpec, decode: Decode, items: AsyncIterator[bytes]) -> None:
        self._spec = spec
        self._decode = decode
        self._items = items

    def __aiter__(self) -> "_Decoded":
        return self

    async def __anext__(self) -> Any:
        data = await self._items.__anext__()
        try:
            return self._decode(data)
        except DecodeFaults as fault:
            raise bad_request(self._spec, fault, "item") from None


def _check_declared(spec: MethodSpec, error: AtollError) -> None:
    if isinstance(error, Failure) and not isinstance(error, spec.failures.get(error.number, ())):
        raise internal(spec, error) from error


def _check_cancelled(spec: MethodSpec, group: BaseExceptionGroup[Any]) -> None:
    """A handler with a nursery of its own was cancelled, and ends by nothing else; or it failed over that."""
    failed = group.split(trio.Cancelled)[1]
    if isinstance(failed, ExceptionGroup):
        raise internal(spec, failed) from group


def internal(spec: MethodSpec, error: BaseException) -> InternalFault:
    """What the caller is told of an exception that is no outcome; the log has its traceback."""
    Log(method=spec.label).error(
        f"{spec.label} raised {type(error).__name__}", traceback=discretion.trace(error)
    )
    return InternalFault(spec.label, _told(error))


def _told(error: BaseException) -> str:
    if isinstance(error, Failure):
        return f"{type(error).__name__}, which its interface does not declare"
    return discretion.told(error)


def as_reply(spec: MethodSpec, error: BaseException) -> AtollError:
    """What the caller is told when a handler ended with that error."""
    if isinstance(error, AtollError):
        try:
            _check_declared(spec, error)
        except InternalFault as fault:
            return fault
        return error
    return internal(spec, error)


def bad_request(spec: MethodSpec, fault: Exception, what: str = "") -> BadRequest:
    """msgspec's fault in the interface's words: the argument by its name, expected and got."""
    if not isinstance(fault, msgspec.ValidationError):
        return BadRequest(_place(spec, "", what), "a well-formed message", f"`{fault}`")
    text, _, path = str(fault).rpartition(" - at ")  # the text may quote the caller's
    if not text:
        text, path = path, ""
    where = _place(spec, path.strip("`"), what)
    expected, _, got = text.removeprefix("Expected ").partition(", got ")
    return BadRequest(where, expected, got or "something else")


def _place(spec: MethodSpec, path: str, what: str) -> str:
    if what:
        return f"{spec.label}({what}{path.removeprefix('$')})"
    if not path.startswith("$["):
        return spec.label
    index, _, rest = path.removeprefix("$[").partition("]")
    names = {str(number): name for number, name in enumerate(spec.arguments.__struct_fields__)}
    return f"{spec.label}({names.get(index, index)}{rest})"
