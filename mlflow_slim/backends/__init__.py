"""One file per backend; `catalog` finds them by name."""
