"""One megabyte of text in every format that is cut into units differently, and the stores that version 1 made of it."""

import csv
import gzip
import json
import random

WORDS = [f"{a}{b}{c}" for a in ("ka", "lo", "mi", "su", "é", "tra") for b in ("n", "r", "st", "ll") for c in "aeiouy"]
# options -> the SHA-256 of tokens.bin and of offsets.npy of each split, made by the code that wrote one file per split.
EXPECTED = {}


def documents(count, seed, mean=60):
    """Returns texts of words, some twice, some with other white space, some blank, some with control characters."""
    rng = random.Random(seed)
    texts = []
    for number in range(count):
        text = " ".join(rng.choices(WORDS, k=rng.randint(3, 2 * mean)))
        if number % 17 == 3 and texts:
            text = rng.choice(texts).replace(" ", "\n ", 1)
        elif number % 29 == 5:
            text = " \n\t"
        elif number % 23 == 7:
            text = f"{text}\x00\r\nend\ufeff "
        texts.append(text)
    return texts


def write_corpus(folder):
    """Writes the text into a directory and returns the pattern of the input."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count, seed in (("a.jsonl", 900, 1), ("b.jsonl", 700, 2), ("z.jsonl", 300, 3)):
        lines = [
            json.dumps({"text": text, "n": n}, ensure_ascii=n % 2 == 0) for n, text in enumerate(documents(count, seed))
        ]
        (folder / name).write_text("\n".join([*lines[:40], "", "   ", *lines[40:]]), encoding="utf-8")
    with gzip.open(folder / "c.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in documents(300, 4))
    with (folder / "d.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([["id", "text"], *enumerate(text.replace("\x00", "\x01") for text in documents(200, 5))])
    (folder / "e.json").write_text(json.dumps([{"text": text} for text in documents(100, 6)]), encoding="utf-8")
    for number, text in enumerate(documents(40, 7, mean=200)):
        if text.strip():
            (folder / f"text-{number:02}.txt").write_text(text, encoding="utf-8", newline="")
    return str(folder)
