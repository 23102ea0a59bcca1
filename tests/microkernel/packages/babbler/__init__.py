"""A server that says on its control socket whatever it is told to."""
