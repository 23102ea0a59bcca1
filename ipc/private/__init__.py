"""Private keyspaces: values that the store never sees (docs/decisions/0021-private-keyspaces.md)."""
