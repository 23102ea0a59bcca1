"""The C core's ordered accesses, explored on a machine that reorders them as ARM may."""
