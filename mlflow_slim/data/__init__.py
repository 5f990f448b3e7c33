"""Rows of any common form as three clean, disjoint tables with a report of everything that was done to them.

`read_tables` is the door. `sources` finds, `delimited` and `files` parse, `labels` says what a value means, `splitting`
cuts, `checks` counts what can't be used. What a label means to a model is the task's business, not ours.
"""

from .tables import Tables, digest_rows, read_tables

__all__ = ["Tables", "digest_rows", "read_tables"]
