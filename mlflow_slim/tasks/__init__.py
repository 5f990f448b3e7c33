"""One file per task; `catalog` finds them by name."""
