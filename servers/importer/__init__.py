"""The importer: files of batches into feedback, durably."""
