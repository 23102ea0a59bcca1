"""Content-addressed blobs on disk: durable, checksummed, collected only when nothing refers to them."""
