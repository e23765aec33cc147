"""The usual baseline for labeled text: TF-IDF and a linear SVM, trained in seconds on the CPU.

  python benchmarks/tfidf_svm.py --train=train.jsonl --test=test.jsonl
  python benchmarks/tfidf_svm.py --data=all.jsonl --test_fraction=0.2 --seed=0

The features are words, pairs of words, and character n-grams of length 2 to 5, weighted by TF-IDF with a logarithmic
term frequency; the classifier is scikit-learn's LinearSVC. Duplicate texts are dropped before a split. The program
prints accuracy and macro-F1 with 95 % percentile-bootstrap intervals over the test rows, as text and as one line of
JSON.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.svm import LinearSVC

Row = tuple[str, str]


class InputError(Exception):
    """An invalid input, described in one line."""


def main() -> None:
    """Trains the model, scores it and prints the results."""
    arguments = parse_arguments()
    fields = (arguments.text_field, arguments.label_field)
    try:
        if arguments.data:
            rows = deduplicate(read(arguments.data, *fields))
            train, test = split(rows, arguments.test_fraction, arguments.seed)
        else:
            train, test = read(arguments.train, *fields), read(arguments.test, *fields)
        if len({label for _, label in train}) < 2 or not test:
            found = f"{len(train)} training and {len(test)} test rows"
            raise InputError(f"{found}; expected at least two labels to train on and one row to test")
    except (InputError, OSError) as error:
        sys.exit(f"tfidf_svm.py: error: {error}")

    start = time.perf_counter()
    model = classifier(arguments.seed).fit(*zip(*train, strict=True))
    texts, labels = zip(*test, strict=True)
    predictions = model.predict(texts)
    seconds = time.perf_counter() - start

    names, codes = np.unique([*labels, *predictions], return_inverse=True)
    truth, predicted = codes[: len(test)], codes[len(test) :]
    overlap = len({text for text, _ in train} & set(texts))
    result = {
        "train_rows": len(train),
        "test_rows": len(test),
        "test_texts_in_train": overlap,
        "labels": len(names),
        **scores(truth, predicted, len(names), arguments.resamples, arguments.seed),
        "seconds": round(seconds, 2),
    }
    print(f"{len(train):,} training and {len(test):,} test rows, {len(names)} labels, {seconds:.1f} s")
    if overlap:
        print(f"warning: {overlap:,} texts of the test rows are also in the training rows")
    for name in ("accuracy", "macro_f1"):
        low, high = result[f"{name}_interval"]
        print(f"{name}: {result[name]:.4f} (95 %: {low:.4f} to {high:.4f})")
    print(json.dumps(result))


def parse_arguments() -> argparse.Namespace:
    """Returns the checked command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--train", type=Path, help="labeled JSONL to train on; with --test")
    parser.add_argument("--test", type=Path, help="labeled JSONL to score")
    parser.add_argument("--data", type=Path, help="labeled JSONL to split, instead of --train and --test")
    parser.add_argument(
        "--test_fraction", type=float, default=0.2, help="part of --data to hold out (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the split, the SVM and the bootstrap (default: %(default)s)"
    )
    parser.add_argument("--text_field", default="text", help="JSON field of the text (default: %(default)s)")
    parser.add_argument("--label_field", default="label", help="JSON field of the label (default: %(default)s)")
    parser.add_argument("--resamples", type=int, default=2000, help="bootstrap resamples (default: %(default)s)")
    arguments = parser.parse_args()
    given = [name for name in ("train", "test", "data") if getattr(arguments, name)]
    if given not in (["data"], ["train", "test"]):
        parser.error("expected --train=FILE and --test=FILE, or --data=FILE alone")
    if not 0 < arguments.test_fraction < 1:
        parser.error(f"--test_fraction={arguments.test_fraction} must be between 0 and 1")
    if arguments.resamples < 1:
        parser.error(f"--resamples={arguments.resamples} must be at least 1")
    return arguments


def read(path: Path, text_field: str, label_field: str) -> list[Row]:
    """Returns (text, label) of each line.

    Raises:
        InputError: a line is not a JSON object with both fields, or its text is not a string.
    """
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                text, label = row[text_field], row[label_field]
            except (ValueError, KeyError, TypeError):
                text, label = None, None
            if not isinstance(text, str) or label is None:
                wanted = f"a JSON object with {text_field!r} (a string) and {label_field!r}"
                raise InputError(f"{path}, line {number}: expected {wanted}")
            rows.append((text, str(label)))
    return rows


def deduplicate(rows: list[Row]) -> list[Row]:
    """Returns the first row of each distinct text; surrounding white space is ignored."""
    first: dict[str, Row] = {}
    for text, label in rows:
        first.setdefault(text.strip(), (text, label))
    return list(first.values())


def split(rows: list[Row], test_fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Returns (train, test) of a seeded shuffle."""
    order = np.random.default_rng(seed).permutation(len(rows))
    cut = round(len(rows) * test_fraction)
    return [rows[i] for i in order[cut:]], [rows[i] for i in order[:cut]]


def classifier(seed: int) -> Pipeline:
    """Returns the untrained pipeline: text -> sparse features -> linear SVM."""
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    features = FeatureUnion([("words", words), ("characters", characters)])
    return Pipeline([("features", features), ("svm", LinearSVC(random_state=seed))])


def scores(
    truth: np.ndarray, predicted: np.ndarray, num_labels: int, resamples: int, seed: int
) -> dict[str, float | list[float]]:
    """Returns accuracy and macro-F1, each with its 95 % percentile-bootstrap interval over the rows."""
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(len(truth), size=len(truth)) for _ in range(resamples)]
    result: dict[str, float | list[float]] = {}
    for name, metric in (("accuracy", accuracy), ("macro_f1", macro_f1)):
        result[name] = metric(truth, predicted, num_labels)
        samples = [metric(truth[rows], predicted[rows], num_labels) for rows in drawn]
        result[f"{name}_interval"] = np.quantile(samples, [0.025, 0.975]).tolist()
    return result


def accuracy(truth: np.ndarray, predicted: np.ndarray, num_labels: int) -> float:
    """Returns the fraction of rows with the correct label."""
    return float((truth == predicted).mean())


def macro_f1(truth: np.ndarray, predicted: np.ndarray, num_labels: int) -> float:
    """Returns the mean F1 over the labels that occur among the true or the predicted labels."""
    right = np.bincount(truth[truth == predicted], minlength=num_labels)
    # F1 = 2 TP / (2 TP + FP + FN), and the denominator is the number of true plus the number of predicted labels.
    occurrences = np.bincount(truth, minlength=num_labels) + np.bincount(predicted, minlength=num_labels)
    present = occurrences > 0
    return float((2 * right[present] / occurrences[present]).mean())


if __name__ == "__main__":
    main()
