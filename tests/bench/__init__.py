"""The benchmark: what Atoll costs, beside its peers and its floors, measured in one run."""
