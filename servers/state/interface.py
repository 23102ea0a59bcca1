"""The store's interface lives with the SDK, since everyone speaks it; here it is under the name a package has
it."""

from atoll.ipc.system.state import State

__all__ = ["State"]
