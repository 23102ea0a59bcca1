"""What a proxy is: an instance of its interface, bound to a transport and to the options of its calls."""

from typing import TypeVar

from .transport import DEFAULTS, ChannelStatistics, Options, Transport

I = TypeVar("I", bound="Bound")  # noqa: E741


class Bound:
    """Base of `Interface`: what a proxy has besides its methods."""

    _transport: Transport
    _options: Options


def bind(interface: type[I], transport: Transport, options: Options = DEFAULTS) -> I:
    """A proxy of an interface over a transport."""
    proxy = object.__new__(interface)
    proxy._transport = transport
    proxy._options = options
    return proxy


def transport_of(proxy: Bound) -> Transport:
    """The transport behind a proxy."""
    return proxy._transport


def options_of(proxy: Bound) -> Options:
    """What a proxy's calls carry."""
    return proxy._options


def statistics(proxy: Bound) -> ChannelStatistics:
    """Counters of the channel behind a proxy."""
    return transport_of(proxy).statistics()
