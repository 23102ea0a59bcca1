"""A package without a server."""

print("imported")
