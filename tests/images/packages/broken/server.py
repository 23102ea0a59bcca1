"""A package whose import fails."""

raise RuntimeError("the device is on fire")
