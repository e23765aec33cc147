"""Documents that break the rules of filters one way each, near the thresholds: made from numbers, so none is stored."""

import random

STOP = "the of and to that with have be a in it is was".split()
OTHER = (
    "river stone window morning letter garden captain answer evening market silver corner promise village doctor "
    "mountain question forest summer winter brother sister teacher kitchen harbor soldier bridge island machine story"
).split()
LONG = "internationalization counterrevolutionaries electroencephalograph incomprehensibilities".split()


def sentence(draw: random.Random, words: int = 12, stop: float = 0.5, end: str = ".") -> str:
    """Returns random words, of which a part `stop` are stop words."""
    picked = [draw.choice(STOP if draw.random() < stop else OTHER) for _ in range(words)]
    return f"{' '.join(picked).capitalize()}{end}"


def prose(draw: random.Random, sentences: int) -> list[str]:
    """Returns random sentences."""
    return [sentence(draw, draw.randrange(4, 20)) for _ in range(sentences)]


def _mixed(draw: random.Random, plain: list[str], other: list[str], separator: str) -> str:
    """Returns lines of both kinds in random order."""
    lines = plain + other
    draw.shuffle(lines)
    return separator.join(lines)


def _repeated(draw: random.Random, unit: str, times: int, around: int, separator: str) -> str:
    return _mixed(draw, prose(draw, around), [unit] * times, separator)


def document(number: int) -> str:
    """Returns document `number`; numbers that are equal modulo 24 are of one kind."""
    draw = random.Random(number)
    size = draw.randrange(1, 30)
    kinds = [
        lambda: " ".join(prose(draw, size)),
        lambda: "\n".join(prose(draw, size)),
        lambda: "\n\n".join(" ".join(prose(draw, 4)) for _ in range(size)),
        lambda: _mixed(draw, prose(draw, 8), [f"- {sentence(draw, 5, end='')}" for _ in range(3 * size)], "\n"),
        lambda: _mixed(draw, prose(draw, 3), [f"  • {sentence(draw, 4)}" for _ in range(3 * size)], "\n"),
        lambda: _mixed(draw, prose(draw, 10), [sentence(draw, 9, end="...") for _ in range(size)], "\n"),
        lambda: _mixed(draw, prose(draw, 10), [sentence(draw, 9, end=" …") for _ in range(size)], "\n"),
        lambda: " ".join(prose(draw, 8) + ["#"] * (2 * size)),
        lambda: " ".join(prose(draw, 8) + ["no... yes"] * size),
        lambda: " ".join(prose(draw, 6) + [f"{draw.randrange(10**6)} |" for _ in range(3 * size)]),
        lambda: " ".join(sentence(draw, 14, stop=0) for _ in range(10)) + " the" * (size > 10) + " of" * (size > 20),
        lambda: " ".join(prose(draw, 6) + [draw.choice(LONG) for _ in range(4 * size)]) + ".",
        lambda: " ".join(["a I"] * (3 * size) + prose(draw, 8)) + ".",
        lambda: _repeated(draw, sentence(draw, 10), size, 20, "\n"),
        lambda: _repeated(draw, sentence(draw, 40), size // 3, 40, "\n\n"),
        lambda: _repeated(draw, "buy it now", 2 * size, 25, " "),
        lambda: _repeated(draw, sentence(draw, 6), size, 25, " "),
        lambda: _repeated(draw, sentence(draw, 11), size // 2, 15, "  "),
        lambda: "\n".join(sentence(draw, draw.randrange(2, 7), end="") for _ in range(20 + size)),
        lambda: _mixed(draw, prose(draw, size), [sentence(draw, 15, end="") for _ in range(25)], "\n"),
        lambda: _mixed(draw, prose(draw, 12), ["Enable JavaScript to read the rest of it."] * size, "\n"),
        lambda: _mixed(
            draw, prose(draw, size), ["We use cookies, and you accept it.", "Edit[edit] it [12] now."], "\n"
        ),
        lambda: _mixed(draw, prose(draw, 9), ["Lorem ipsum dolor sit amet." if size > 15 else "f(x) { x }."], "\n"),
        lambda: _mixed(
            draw, prose(draw, 9), ["河の水は、とても 冷たい。" * size, "“So?” he\u2019d ask: don't!"], "\n\n"
        ),
    ]
    return kinds[number % len(kinds)]()


def documents(count: int) -> list[str]:
    """Returns the first documents."""
    return [document(number) for number in range(count)]
