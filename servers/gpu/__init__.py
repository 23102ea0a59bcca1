"""Accelerators as leases: which devices there are, who may use how much of one, and until when."""
