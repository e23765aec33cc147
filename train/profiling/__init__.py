"""Where the time of a run goes: profiles of steps, their tables, and the time line of metrics.jsonl."""
