"""A recorded call, run again: in a process that holds no capability, over needs that are played from the recording."""
