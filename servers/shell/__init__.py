"""The `atoll` command: a client of the node like any other, and the way to start one."""
