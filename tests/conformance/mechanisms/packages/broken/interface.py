"""It has none: its server cannot be imported."""
