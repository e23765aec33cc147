"""Exact match and F1 of an answer, as SQuAD's official script has them (Rajpurkar et al. 2016, 2018).

No kept library has them without PyTorch or a download.
"""

import re
import string
from collections import Counter

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Returns the text in lower case, without punctuation, articles and surplus blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(reference: str, text: str) -> float:
    """Returns 1 where both are the same once normalised, else 0."""
    return float(normalise(reference) == normalise(text))


def token_f1(reference: str, text: str) -> float:
    """Returns the F1 of the words that both have; where one has none, 1 if neither has."""
    right, told = normalise(reference).split(), normalise(text).split()
    if not right or not told:
        return float(right == told)
    both = sum((Counter(right) & Counter(told)).values())
    return 2 * both / (len(right) + len(told))
