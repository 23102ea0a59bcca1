"""A machine as Debian's default user has it: Debian's own kernel, systemd, control groups handed down, no root."""
