"""What several suites share: real server processes behind real channels, without a kernel."""
