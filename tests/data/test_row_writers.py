import itertools

import pytest

from data.readers import read_rows
from data.row_writers import open_writer

PIECES = ["\r", "\n", "\r\n", '"', ",", "\t", " ", "\0", "\ufeff", "\x85", "\u2028", "a", "ü", "\\"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".CSV"])
def test_any_text_is_read_as_it_was_written(tmp_path, suffix):
    texts = ["", *("".join(pieces) for count in (1, 2, 3) for pieces in itertools.product(PIECES, repeat=count))]
    for columns in (("text",), ("id", "text", "more")):
        rows = [dict.fromkeys(columns, text) for text in texts]
        path = tmp_path / f"rows-{len(columns)}{suffix}"
        writer = open_writer(path, columns, "x", overwrite=False)
        writer.write(rows[:1000])
        writer.write(rows[1000:])
        writer.finish()
        assert list(read_rows(str(path))) == rows
