"""It has none: its server ends where it is imported."""
