"""What a server does at most, so that no client can take all of it."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes:
        slots: texts that are generated at the same time.
        max_length: the most tokens of a prompt and its answer together.
        max_tokens: the most tokens of an answer.
        max_waiting: requests that wait for a slot or a batch; further ones are refused.
        max_body: the most bytes of a request.
        max_rows: the most rows of one prediction request.
        timeout: seconds from when a request has been read until it ends, with waiting.
    """

    slots: int = 8
    max_length: int = 2048
    max_tokens: int = 1024
    max_waiting: int = 128
    max_body: int = 1_000_000
    max_rows: int = 256
    timeout: float = 120.0
