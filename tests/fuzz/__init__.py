"""The C core under a coverage-guided fuzzer, with sanitizers; `make fuzz` runs it for long."""
