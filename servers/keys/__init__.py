"""The keyring of private keyspaces (docs/decisions/0021-private-keyspaces.md)."""
