"""Backups of a store: taken beside its writers, kept as segments in a folder, restored into a new store."""
