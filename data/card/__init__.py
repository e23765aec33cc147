"""The data card of a token store: what it was made of, what was removed and why, as JSON and as a page."""
