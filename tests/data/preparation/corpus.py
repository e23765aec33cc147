"""One megabyte of text in every format that is cut into units differently, and the stores that version 1 made of it."""

import csv
import gzip
import json
import random

WORDS = [f"{a}{b}{c}" for a in ("ka", "lo", "mi", "su", "é", "tra") for b in ("n", "r", "st", "ll") for c in "aeiouy"]
OPTIONS = {
    "documents": {"tokenizer": "bpe:500", "validation_fraction": 0.1, "seed": 3},
    "tail": {"tokenizer": "bytes", "validation_fraction": 0.25, "validation_split": "tail"},
    "whole": {"tokenizer": "chars", "seed": -1},
}
COLLECTED = {"read": 2537, "empty": 90, "duplicate": 146, "control characters": 111}
# The SHA-256 of tokens.bin and of offsets.npy of each split in the stores that were written as one file per split.
EXPECTED = {
    "documents": {
        "train": (
            "fd0e724bdd41e029bd18f61b388ae2d20ecd0e16cb71c71ddc06f318bf3fe023",
            "a6e36b08c959150938e290c3d3fa4bab04d48c9ac2dc0560f9ac57fcc9cf73b5",
        ),
        "validation": (
            "8feea7045efe749815b7608d5ef0e81ed80231da7aed22c9dcd34ec6d65b1dee",
            "474ad390f11caeaabdd2f88323027c40a91b9595472e461300b9b25503a26a6c",
        ),
    },
    "tail": {
        "train": (
            "e1d68dd972f618e2d77fb25096a30d9d15e83957cef63f031678cc9d295e709c",
            "f9bafee8cf42aa6226151451a815d549edbee77ac29afc8acb6e5f26b0a30118",
        ),
        "validation": (
            "0774a54d86147cf7b77c7d881c07d9d3aca54233ad53c67c11bae81c9a0befb4",
            "664f29700b8d9e699aaa889a10f0cf4226419b306c4987bb71edd89e0542b853",
        ),
    },
    "whole": {
        "train": (
            "faefbb53810e252a3caeec35454f7af45a01a8e55ae49738f0dff53f6fe4fffe",
            "1aa0f543b8a013ac99af7fbae7649c57178eeaa2d69816cd03d2c0f441155edf",
        ),
    },
}


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
