"""The before/after table, as text and as HTML."""
