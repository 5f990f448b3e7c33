"""One file per technique; `catalog` finds them by name."""
