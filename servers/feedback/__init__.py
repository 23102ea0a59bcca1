"""Human feedback: typed records in batches that commit whole, can be taken back, and are read as of any
revision.
"""
