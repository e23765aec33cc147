"""Exact match and F1 of an answer, as in SQuAD's official script (Rajpurkar et al. 2016, 2018).

No maintained library computes them without PyTorch or a download.
"""

import re
import string
from collections import Counter

# The text that a model is trained to generate for a question without an answer.
NO_ANSWER = "no answer"
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Returns the text in lower case, without punctuation, articles and repeated spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(reference: str, text: str) -> float:
    """Returns 1 if the normalized texts are equal, else 0."""
    return float(normalize(reference) == normalize(text))


def token_f1(reference: str, text: str) -> float:
    """Returns the F1 of the common words; if one text has no words, 1 if the other has none either, else 0."""
    expected, given = normalize(reference).split(), normalize(text).split()
    if not expected or not given:
        return float(expected == given)
    common = sum((Counter(expected) & Counter(given)).values())
    return 2 * common / (len(expected) + len(given))
