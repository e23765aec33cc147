"""Metrics of predictions with bootstrap intervals, from scikit-learn, sacrebleu and rouge-score."""

import importlib
import math
import re
from collections.abc import Callable, Sequence

import numpy as np

from configs.errors import UserError
from data.similar_texts import NO_SPACES, words
from train.evaluation.interval import Interval, bootstrap, draws, interval, mean_interval
from train.evaluation.squad import NO_ANSWER, exact_match, normalize, token_f1

_TOP = 3
_NO_SPACES = re.compile(f"[{NO_SPACES}]")
_PACKAGES = {"sklearn": "scikit-learn", "sacrebleu": "sacrebleu", "rouge_score": "rouge-score"}
# The tag of a word outside every entity (CoNLL).
OUTSIDE = "O"


def require() -> None:
    """Raises UserError if a library is missing; called before training, not after."""
    for module, name in _PACKAGES.items():
        try:
            importlib.import_module(module)
        except ImportError:
            raise UserError(f"task metrics need {name}: pip install -e '.[tasks]'") from None


def classification(labels: Sequence[str], rankings: Sequence[Sequence[str]]) -> dict[str, Interval]:
    """Returns accuracy, macro-F1 over the classes that occur among the labels, and top-3 accuracy.

    Args:
        labels: the expected class of each row.
        rankings: classes of each row, most likely first.
    """
    predicted = [ranking[0] for ranking in rankings]
    hits = [label in ranking[:_TOP] for label, ranking in zip(labels, rankings, strict=True)]
    return {
        "accuracy": mean_interval(np.array(labels) == np.array(predicted)),
        "macro_f1": _macro_f1(np.array(labels), np.array(predicted), np.unique(labels)),
        f"top_{_TOP}": mean_interval(hits),
    }


def _macro_f1(labels: np.ndarray, predicted: np.ndarray, classes: np.ndarray) -> Interval:
    from sklearn.metrics import f1_score

    value = f1_score(labels, predicted, labels=classes, average="macro", zero_division=0)
    is_label, is_prediction = labels[:, None] == classes, predicted[:, None] == classes
    return interval(value, _resampled_macro_f1(is_label, is_prediction, is_label & is_prediction))


def _resampled_macro_f1(expected: np.ndarray, predicted: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Returns (`RESAMPLES`,): in every resample, the mean F1 over the classes that occur among its labels.

    That is the metric itself: a class that a resample does not contain has no F1 there, so it counts neither as 0 nor
    as 1. NaN where a resample contains no class. The arguments are those of `_resampled_f1`.
    """
    absent = draws(len(expected)) @ expected.astype(np.float32) == 0
    f1 = _resampled_f1(expected, predicted, correct)
    return np.ma.masked_array(f1, absent).mean(-1).filled(np.nan)


def _resampled_f1(expected: np.ndarray, predicted: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Returns F1 (`RESAMPLES`, classes) in every resample of rows, by one matrix product instead of a thousand calls.

    NaN where a class is neither expected nor predicted.

    Args:
        expected: (rows, classes), how often a row has a class.
        predicted: (rows, classes), how often it was predicted.
        correct: (rows, classes), how often it was predicted correctly.
    """
    expected, predicted, correct = (x.astype(np.float32) for x in (expected, predicted, correct))
    drawn = draws(len(expected))
    found = drawn @ (expected + predicted)
    return np.where(found > 0, 2 * (drawn @ correct) / np.maximum(found, 1), np.nan)


def confusion(labels: Sequence[str], predicted: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Returns int (classes, classes): how often each expected class (row) was predicted as each class (column)."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(labels, predicted, labels=list(classes))


def multi_label(labels: Sequence[set[str]], predicted: Sequence[set[str]]) -> dict[str, Interval]:
    """Returns micro-F1, macro-F1 over the classes that occur among the labels, and the share of exact matches."""
    from sklearn.metrics import f1_score

    known = sorted(set().union(*labels)) or [""]
    # An extra class that never occurs, because scikit-learn reads a single column as two classes.
    classes = [*known, *sorted(set().union(*predicted) - set(known)), ""]
    y, p = (np.array([[name in row for name in classes] for row in rows]) for rows in (labels, predicted))
    micro = f1_score(y, p, average="micro", zero_division=0)
    macro = f1_score(y, p, labels=range(len(known)), average="macro", zero_division=0)
    totals = (counts.sum(1, keepdims=True) for counts in (y, p, y & p))
    return {
        "micro_f1": interval(micro, _resampled_f1(*totals)[:, 0]),
        "macro_f1": interval(macro, _resampled_macro_f1(*(x[:, : len(known)] for x in (y, p, y & p)))),
        "exact_match": mean_interval([a == b for a, b in zip(labels, predicted, strict=True)]),
    }


def regression(values: Sequence[float], predicted: Sequence[float]) -> dict[str, Interval]:
    """Returns R2, the mean absolute error and Spearman's rank correlation.

    If all values are equal, R2 is 1 for perfect predictions and otherwise 0, as in scikit-learn. If all values or all
    predictions are equal, Spearman's correlation is 0.
    """
    from scipy.stats import spearmanr

    y, p = np.asarray(values, np.float64), np.asarray(predicted, np.float64)

    def r2(rows: np.ndarray) -> float:
        if np.ptp(y[rows]) == 0:
            return math.nan
        return float(1 - np.square(y[rows] - p[rows]).sum() / np.square(y[rows] - y[rows].mean()).sum())

    def rank_correlation(rows: np.ndarray) -> float:
        defined = np.ptp(p[rows]) > 0 and np.ptp(y[rows]) > 0
        return float(spearmanr(y[rows], p[rows]).statistic) if defined else math.nan

    return {
        "r2": bootstrap(r2, len(y), undefined=float(np.array_equal(y, p))),
        "mean_absolute_error": mean_interval(np.abs(y - p), better="lower"),
        "spearman": bootstrap(rank_correlation, len(y), undefined=0.0),
    }


def tagging(labels: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, Interval]:
    """Returns accuracy over words and macro-F1 over the tags other than "O".

    Resampled by rows, because the words of a sentence are not independent.
    """
    from sklearn.metrics import accuracy_score, f1_score

    y, p = (np.array([tag for row in rows for tag in row]) for rows in (labels, predicted))
    row_of_word = np.repeat(np.arange(len(labels)), [len(row) for row in labels])

    def by_row(words: np.ndarray) -> np.ndarray:
        counts = np.zeros((len(labels), words.shape[1]), np.float32)
        np.add.at(counts, row_of_word, words)
        return counts

    drawn = draws(len(labels))
    right, words = (drawn @ by_row(x[:, None])[:, 0] for x in (y == p, np.ones(len(y))))
    found = {"accuracy": interval(accuracy_score(y, p), np.where(words > 0, right / np.maximum(words, 1), np.nan))}
    tags = np.array([tag for tag in np.unique(y) if tag != OUTSIDE])
    if len(tags):
        is_label, is_prediction = y[:, None] == tags, p[:, None] == tags
        value = f1_score(y, p, labels=tags, average="macro", zero_division=0)
        counts = (by_row(is_label), by_row(is_prediction), by_row(is_label & is_prediction))
        found["macro_f1"] = interval(value, _resampled_macro_f1(*counts))
    return found


def rouge(references: Sequence[Sequence[str]], texts: Sequence[str]) -> dict[str, Interval]:
    """Returns ROUGE-1, -2 and -L (F1, stemmed), of each text against its best reference, in words of any script.

    A row without references expects `NO_ANSWER`, the text that it trains.
    """
    from rouge_score.rouge_scorer import RougeScorer

    names = {"rouge1": "rouge_1", "rouge2": "rouge_2", "rougeL": "rouge_l"}
    scorer = RougeScorer(list(names), tokenizer=_RougeWords())
    rows = [scorer.score_multi(list(right) or [NO_ANSWER], text) for right, text in zip(references, texts, strict=True)]
    return {name: mean_interval([row[key].fmeasure for row in rows]) for key, name in names.items()}


class _RougeWords:
    """rouge-score's own words where they are ASCII, which are all that it finds, and the words of other scripts."""

    def __init__(self) -> None:
        from rouge_score.tokenizers import DefaultTokenizer

        self._ascii = DefaultTokenizer(use_stemmer=True)

    def tokenize(self, text: str) -> list[str]:
        """Returns the words in lower case, those in ASCII stemmed; in scripts without spaces, the characters."""
        found = (self._ascii.tokenize(word) if word.isascii() else [word] for word in words(text))
        return [word for part in found for word in part if any(map(str.isalnum, word))]


def bleu_chrf(references: Sequence[Sequence[str]], texts: Sequence[str]) -> dict[str, Interval]:
    """Returns sacrebleu's corpus BLEU and chrF, 0 to 100; a row without references expects `NO_ANSWER`.

    Where most letters of the references are of scripts without spaces, BLEU is that of characters, because a sentence
    would be a single word.

    sacrebleu's own bootstrap gives a mean and a half width, which can exceed 100, and counts a resample without any
    4-gram, for which BLEU is undefined, as 0.
    """
    from sacrebleu.metrics import BLEU, CHRF

    rows = [list(right) or [NO_ANSWER] for right in references]
    streams = [[row[min(i, len(row) - 1)] for row in rows] for i in range(max(map(len, rows)))]
    bleu, chrf = BLEU(tokenize=_bleu_tokenizer(references)), CHRF()

    # The counts of a row, and the score of their sum: private, and what sacrebleu's significance tests call, too.
    def bleu_of(counts: list[int]) -> float:
        return bleu._compute_score_from_stats(counts).score if counts[-1] else math.nan

    def chrf_of(counts: list[int]) -> float:
        return chrf._compute_score_from_stats(counts).score

    return {
        "bleu": _corpus_interval(bleu._extract_corpus_statistics(list(texts), streams), bleu_of),
        "chrf": _corpus_interval(chrf._extract_corpus_statistics(list(texts), streams), chrf_of),
    }


def _bleu_tokenizer(references: Sequence[Sequence[str]]) -> str:
    text = "".join(reference for right in references for reference in right)
    return "char" if 2 * len(_NO_SPACES.findall(text)) > sum(map(str.isalpha, text)) else "13a"


def _corpus_interval(counts_of_rows: Sequence[Sequence[int]], score: Callable[[list[int]], float]) -> Interval:
    """Returns the interval of a corpus metric: `score` of counts that are summed over rows; 0 if it is undefined."""
    counts = np.array(counts_of_rows, np.int64)
    return bootstrap(lambda rows: float(score(counts[rows].sum(0).tolist())), len(counts), undefined=0.0)


def squad(references: Sequence[Sequence[str]], texts: Sequence[str]) -> dict[str, Interval]:
    """Returns exact match and F1 against the best reference; with both kinds of questions, also for each kind.

    A question without references has no answer; only "" is correct for it (SQuAD 2.0). The figures of questions with an
    answer are "answerable_exact_match" and "answerable_f1", that of the others "no_answer_accuracy".
    """
    # A reference of only articles and punctuation counts as no answer.
    best = [[reference for reference in right if normalize(reference)] or [""] for right in references]
    exact = np.array([max(exact_match(r, t) for r in b) for b, t in zip(best, texts, strict=True)])
    f1 = np.array([max(token_f1(r, t) for r in b) for b, t in zip(best, texts, strict=True)])
    found = {"exact_match": mean_interval(exact), "f1": mean_interval(f1)}
    answerable = np.array([bool(right) for right in references])
    if answerable.any() and not answerable.all():
        found["answerable_exact_match"] = mean_interval(exact[answerable])
        found["answerable_f1"] = mean_interval(f1[answerable])
    if not answerable.all():
        found["no_answer_accuracy"] = mean_interval(exact[~answerable])
    return found
