"""The server that the call rows speak to: a package as any author would write it."""
