"""Memory as regions: allocated, mapped without a copy, sealed, shared, and taken back when nobody holds
them.
"""
