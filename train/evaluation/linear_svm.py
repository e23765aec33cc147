"""What labeled text is classified with in a minute on a CPU: TF-IDF features and a linear SVM (scikit-learn).

Its strength of regularization is the one that does best on validation rows; held-out rows are only predicted.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from data.similar_texts import words

# The values of C that are tried, weakest model first: of two equally good ones the first is used.
STRENGTHS = (0.1, 1.0, 10.0)
_MAX_ITERATIONS = 2000
# Enough where only the order of the classes and rough margins matter.
_FEW_ITERATIONS = 200


def fit_classifier(
    train: tuple[Sequence[str], Sequence[str]], validation: tuple[Sequence[str], Sequence[str]]
) -> tuple[Any, Any]:
    """Returns (fitted features, fitted LinearSVC), of scikit-learn; `linear_text` makes one value of them.

    Args:
        train: (texts, the class of each).
        validation: (texts, the class of each), to choose C by accuracy.
    """
    found = _text_features(train[0])
    features, held_out = found.transform(train[0]), found.transform(validation[0])
    models = [_fitted(_svm(strength), features, np.array(train[1])) for strength in STRENGTHS]
    return found, _best(models, [float((m.predict(held_out) == np.array(validation[1])).mean()) for m in models])


def several_classes(
    train: tuple[Sequence[str], Sequence[Sequence[str]]],
    validation: tuple[Sequence[str], Sequence[Sequence[str]]],
    texts: Sequence[str],
) -> list[list[str]]:
    """Returns the classes of each text, any number: a decision for each class, with C chosen by micro-F1."""
    from sklearn.metrics import f1_score
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.preprocessing import MultiLabelBinarizer

    names, found = MultiLabelBinarizer(), _text_features(train[0])
    features, held_out = found.transform(train[0]), found.transform(validation[0])
    with warnings.catch_warnings():
        # A class that all rows have, or none, and classes that only validation rows have.
        warnings.simplefilter("ignore", UserWarning)
        targets, expected = names.fit_transform(train[1]), names.transform(validation[1])
        models = [_fitted(OneVsRestClassifier(_svm(strength)), features, targets) for strength in STRENGTHS]
        scores = [f1_score(expected, m.predict(held_out), average="micro", zero_division=0) for m in models]
        predicted = _best(models, scores).predict(found.transform(texts))
    return [list(row) for row in names.inverse_transform(predicted)]


def cross_fit(
    texts: Sequence[str], labels: np.ndarray, folds: np.ndarray, classes: int, characters: bool = True
) -> np.ndarray:
    """Returns the margins of each text's classes, (texts, classes), by a model of the other folds; C is 1.

    -inf where these folds lack a class. The features are those of all texts, which are known without their labels.

    Args:
        texts: the texts.
        labels: (texts,) the class of each, 0 to `classes` - 1.
        folds: (texts,) the fold of each.
        classes: how many there are.
        characters: use characters within words too, which takes five times as long.
    """
    features = (_text_features(texts) if characters else _words_and_pairs(texts)).transform(texts)
    margins = np.full((len(texts), classes), -np.inf)
    for fold in np.unique(folds):
        held_out = folds == fold
        if len(np.unique(labels[~held_out])) > 1:
            model = _fitted(_svm(1.0, _FEW_ITERATIONS), features[~held_out], labels[~held_out])
            margins[np.ix_(held_out, model.classes_)] = _margins(model, features[held_out])
    return margins


Sentences = Sequence[Sequence[str]]


def tag_words(
    train: tuple[Sentences, Sentences], validation: tuple[Sentences, Sentences], sentences: Sentences
) -> list[list[str]]:
    """Returns a tag for each word, from the word, its ends, its shape and its neighbors; C is chosen by accuracy."""
    from sklearn.feature_extraction.text import CountVectorizer

    # Each word is a "document" of the names of its features.
    found = CountVectorizer(analyzer=list, binary=True)
    features = found.fit_transform([f for words in train[0] for f in _word_features(words)])
    targets = np.array([tag for tags in train[1] for tag in tags])
    held_out = found.transform([f for words in validation[0] for f in _word_features(words)])
    expected = np.array([tag for tags in validation[1] for tag in tags])
    models = [_fitted(_svm(strength), features, targets) for strength in STRENGTHS]
    best = _best(models, [float((m.predict(held_out) == expected).mean()) for m in models])
    predicted = iter(best.predict(found.transform([f for words in sentences for f in _word_features(words)])).tolist())
    return [[next(predicted) for _ in words] for words in sentences]


def _text_features(texts: Sequence[str]) -> Any:  # noqa: ANN401 - scikit-learn has no types
    """Returns the fitted features: words, pairs of words, and characters within words."""
    from sklearn.pipeline import FeatureUnion

    return FeatureUnion(list(zip(("words", "characters"), text_vectorizers(), strict=True))).fit(texts)


def text_vectorizers() -> list[Any]:
    """Returns the features of texts, not yet fitted: words with pairs of them, and characters within words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    # Of texts that are all punctuation, the default pattern finds no word, which is an error.
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\w+|[^\w\s]")
    return [words, TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)]


def _words_and_pairs(texts: Sequence[str]) -> Any:  # noqa: ANN401 - scikit-learn has no types
    """Returns the fitted features: words, or characters in scripts without spaces, and pairs of them."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    options = {"tokenizer": words, "token_pattern": None, "lowercase": False}
    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, **options).fit(texts)


def _svm(strength: float, iterations: int = _MAX_ITERATIONS) -> Any:  # noqa: ANN401 - scikit-learn has no types
    from sklearn.svm import LinearSVC

    return LinearSVC(C=strength, random_state=0, max_iter=iterations)


def _fitted(model: Any, features: Any, targets: np.ndarray) -> Any:  # noqa: ANN401 - scikit-learn has no types
    """Returns the fitted model; one that has not converged is good enough to choose from."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(features, targets)


def _best(models: Sequence[Any], scores: Sequence[float]) -> Any:  # noqa: ANN401 - scikit-learn has no types
    return models[int(np.argmax(scores))]


def _margins(model: Any, features: Any) -> np.ndarray:  # noqa: ANN401 - scikit-learn has no types
    """Returns (texts, classes); of two classes, scikit-learn gives the margin of the second one."""
    margins = model.decision_function(features)
    return np.stack([-margins, margins], -1) if margins.ndim == 1 else margins


def _word_features(words: Sequence[str]) -> Iterator[list[str]]:
    """Yields the names of the features of each word of a sentence."""
    for place, word in enumerate(words):
        before = words[place - 1] if place else "<start>"
        after = words[place + 1] if place + 1 < len(words) else "<end>"
        lower = word.lower()
        names = [f"word={lower}", f"exact={word}", f"shape={_shape(word)}", f"before={before.lower()}"]
        names += [f"after={after.lower()}", f"pair={before.lower()} {lower}"]
        names += [f"end={lower[-n:]}" for n in (1, 2, 3)] + [f"start={lower[:n]}" for n in (1, 2, 3)]
        yield names


def _shape(word: str) -> str:
    """Returns a word's characters by kind, each run once: "Xx", "d", "X.d"."""
    kinds = ["X" if c.isupper() else "x" if c.islower() else "d" if c.isdigit() else c for c in word[:12]]
    return "".join(kind for place, kind in enumerate(kinds) if not place or kind != kinds[place - 1])
