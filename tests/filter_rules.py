"""Our rules under the names of datatrove's reasons."""

from data.filters.c4 import C4, c4
from data.filters.fineweb import FineWeb, fineweb
from data.filters.gopher import GopherQuality, GopherRepetition, gopher_quality, gopher_repetition
from data.filters.words import count_words

# Our reason -> datatrove's.
RULES = {
    "gopher: few words": "gopher_short_doc",
    "gopher: many words": "gopher_long_doc",
    "gopher: short words": "gopher_below_avg_threshold",
    "gopher: long words": "gopher_above_avg_threshold",
    "gopher: number signs": "gopher_too_many_hashes",
    "gopher: ellipses": "gopher_too_many_ellipsis",
    "gopher: bullet lines": "gopher_too_many_bullets",
    "gopher: lines that end with an ellipsis": "gopher_too_many_end_ellipsis",
    "gopher: few words with letters": "gopher_below_alpha_threshold",
    "gopher: few stop words": "gopher_enough_stop_words",
    "gopher: repeated paragraphs": "dup_para_frac",
    "gopher: characters in repeated paragraphs": "dup_para_char_frac",
    "gopher: repeated lines": "dup_line_frac",
    "gopher: characters in repeated lines": "dup_line_char_frac",
    **{f"gopher: a frequent {n}-gram": f"top_{n}_gram" for n in (2, 3, 4)},
    **{f"gopher: repeated {n}-grams": f"duplicated_{n}_n_grams" for n in range(5, 11)},
    "c4: lorem ipsum": "lorem_ipsum",
    "c4: a curly bracket": "curly_bracket",
    "c4: few sentences": "too_few_sentences",
    "gopher: empty": "empty",
    "fineweb: empty": "empty",
    "fineweb: few lines that end a sentence": "line_punct_ratio",
    "fineweb: short lines": "short_line_ratio",
    "fineweb: repeated lines": "char_dup_ratio",
    "fineweb: a list": "list_ratio",
    "": "",
}


def decide(text: str, name: str) -> tuple[str, str]:
    """Returns (our reason to remove a text or "", the text that remains)."""
    if name == "c4":
        kept, reason, _ = c4(text, C4())
        return reason or "", kept
    words = count_words(text)
    reason = {
        "gopher_quality": lambda: gopher_quality(words, GopherQuality()),
        "gopher_repetition": lambda: gopher_repetition(words, GopherRepetition()),
        "fineweb": lambda: fineweb(words, FineWeb()),
    }[name]()
    return reason or "", "" if reason else text
