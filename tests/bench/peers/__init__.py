"""What Atoll's calls are measured beside: each module is a contestant and, as `main`, its serving process."""
