"""The C core: its parts against models, hostile peers, forgery, revocation."""
