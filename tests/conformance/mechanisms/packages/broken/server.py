"""Cannot be imported."""

raise OSError("its licence has run out")
