"""The interface lives with the SDK, since every server with a private keyspace speaks it; here it is under the name a
package has it."""

from atoll.ipc.system.keys import Keys

__all__ = ["Keys"]
