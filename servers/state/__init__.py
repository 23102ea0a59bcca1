"""The store: one writer, group commit, every write kept as a version of its key."""
