"""Writes the texts beside books that configs/pretrain/foundation.py reads: people's words of today, and documentation.

  python -m benchmarks.foundation_texts --data=DATA --output=texts

DATA is the folder of the public data sets that docs/results.md uses. `today.jsonl` has paragraphs, questions,
dialogues, sentences and instructions, of sets on which no classifier of that page is measured; `manual.jsonl` has the
docstrings that are installed on this machine, and the texts of licenses. Labels are not read. Each text is written
once.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from data.demo_corpus import collect_docstrings

Row = dict[str, object]
_LICENSES = Path("/usr/share/common-licenses")
_MANUAL_BYTES = 6_000_000


def main() -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    write(arguments.output / "today.jsonl", texts_of_today(arguments.data))
    write(arguments.output / "manual.jsonl", manuals())


def write(path: Path, texts: Iterator[str]) -> None:
    """Writes each different text once, in an order that is shuffled and always the same."""
    unique = list(dict.fromkeys(text.strip() for text in texts))
    random.Random(0).shuffle(unique)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in unique if text))
    print(f"{path}: {len(unique):,} texts, {path.stat().st_size / 1e6:.1f} MB")


def texts_of_today(data: Path) -> Iterator[str]:
    """Yields the texts of the data sets: what people wrote and said in this century."""
    sets: dict[str, Callable[[Row], str]] = {
        "squad2_dev_half/all.jsonl": lambda row: str(row["context"]),
        "xquad/en.jsonl": lambda row: str(row["context"]),
        "mts_dialog/train.jsonl": lambda row: str(row["dialogue"]),
        "taskmaster4_chat/all.jsonl": _conversation,
        "instructions/instruction_data.jsonl": _instruction,
        "instructions/seed_tasks.jsonl": _instruction,
    }
    for name, text in sets.items():
        yield from map(text, _rows(data / name))
    yield from _joined(_questions(data / "squad2_dev_half/all.jsonl"), count=8)
    for name in ("tatoeba_en_de", "tatoeba_en_vi"):
        yield from _joined((str(row["en"]) for row in _rows(data / name / "all.jsonl")), count=16)


def manuals() -> Iterator[str]:
    """Yields the installed docstrings, a share of them if there are many, and the licenses of the system."""
    docstrings = [docstring.text for docstring in collect_docstrings()]
    size = sum(map(len, docstrings))
    keep = min(1.0, _MANUAL_BYTES / size)
    draw = random.Random(0)
    yield from (text for text in docstrings if draw.random() < keep)
    if _LICENSES.is_dir():
        for path in sorted(_LICENSES.iterdir()):
            yield from _joined(iter(path.read_text(errors="replace").split("\n\n")), count=8)


def _rows(path: Path) -> Iterator[Row]:
    return map(json.loads, path.read_text().splitlines())


def _conversation(row: Row) -> str:
    messages = row["messages"]
    assert isinstance(messages, list)
    return "\n".join(message["content"] for message in messages)


def _instruction(row: Row) -> str:
    return "\n".join(str(row[part]) for part in ("instruction", "input", "output") if row[part])


def _questions(path: Path) -> Iterator[str]:
    return (str(row["question"]) for row in _rows(path))


def _joined(texts: Iterator[str], count: int) -> Iterator[str]:
    """Yields `count` short texts as one, a line each, so that a row has context."""
    unique = list(dict.fromkeys(texts))
    for start in range(0, len(unique), count):
        yield "\n".join(unique[start : start + count])


if __name__ == "__main__":
    main()
