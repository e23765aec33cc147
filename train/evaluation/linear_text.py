"""A linear model of the classes of texts as one value: fitted by `linear_svm`, saved as one file, read without pickle.

F features, V classes.
"""

import dataclasses
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from configs.errors import UserError, one_line
from train.evaluation.linear_svm import fit_classifier, text_vectorizers

# No feature contains one: words and characters within words have no line end, and pairs are joined by a space.
_BETWEEN = "\n"


@dataclasses.dataclass(frozen=True)
class LinearText:
    """TF-IDF of words, pairs of words and characters within words, and a weight for each of them and each class.

    Attributes:
        classes: names.
        vectorizers: the fitted features, of scikit-learn.
        weights_FV: in float32, with the precision of float16, in which they are saved.
        bias_V: added to the margin of each class.
    """

    classes: tuple[str, ...]
    vectorizers: tuple[Any, ...]
    weights_FV: np.ndarray
    bias_V: np.ndarray

    def margins(self, texts: Sequence[str], classes: Sequence[str]) -> np.ndarray:
        """Returns (texts, classes); a class that the model lacks gets the lowest margin of the text."""
        from scipy.sparse import hstack

        features = hstack([vectorizer.transform(texts) for vectorizer in self.vectorizers], format="csr")
        own_NV = features.astype(np.float32) @ self.weights_FV + self.bias_V
        found = np.repeat(own_NV.min(-1, keepdims=True), len(classes), -1)
        places = {name: place for place, name in enumerate(classes)}
        known = [number for number, name in enumerate(self.classes) if name in places]
        found[:, [places[self.classes[number]] for number in known]] = own_NV[:, known]
        return found

    def ranked(self, texts: Sequence[str]) -> list[list[str]]:
        """Returns the classes of each text, most likely first."""
        margins_NV = self.margins(texts, self.classes)
        return [[self.classes[i] for i in np.argsort(-row, kind="stable")] for row in margins_NV]

    def to_bytes(self) -> bytes:
        """Returns the file."""
        names = [_BETWEEN.join(vectorizer.get_feature_names_out()) for vectorizer in self.vectorizers]
        arrays: dict[str, Any] = {f"names_{i}": _as_bytes(text) for i, text in enumerate(names)}
        arrays |= {f"idf_{i}": vectorizer.idf_ for i, vectorizer in enumerate(self.vectorizers)}
        arrays |= {"classes": _as_bytes(json.dumps(self.classes)), "bias": self.bias_V}
        arrays["weights"] = self.weights_FV.astype(np.float16)
        file = io.BytesIO()
        np.savez(file, **arrays)
        return file.getvalue()


def fit_linear_text(
    train: tuple[Sequence[str], Sequence[str]], validation: tuple[Sequence[str], Sequence[str]]
) -> LinearText:
    """Returns the linear SVM of the training texts whose strength does best on the validation texts.

    Args:
        train: (texts, the class of each).
        validation: the same, to choose by.
    """
    features, model = fit_classifier(train, validation)
    weights_VF, bias_V = model.coef_, model.intercept_
    if len(model.classes_) == 2:
        # Of two classes, scikit-learn has the weights of the second one.
        weights_VF, bias_V = np.concatenate([-weights_VF, weights_VF]), np.concatenate([-bias_V, bias_V])
    weights_FV = np.ascontiguousarray(weights_VF.T).astype(np.float16).astype(np.float32)
    vectorizers = tuple(vectorizer for _, vectorizer in features.transformer_list)
    return LinearText(tuple(model.classes_.tolist()), vectorizers, weights_FV, bias_V.astype(np.float32))


def read_linear_text(data: bytes, where: str) -> LinearText:
    """Returns the model in a file of `LinearText.to_bytes`.

    Args:
        data: the file.
        where: its path, for the message.

    Raises:
        UserError: the file is corrupt, or scikit-learn is not installed.
    """
    try:
        vectorizers = text_vectorizers()
    except ImportError:
        raise UserError(f"{where} needs scikit-learn: pip install -e '.[tasks]'") from None
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            for number, vectorizer in enumerate(vectorizers):
                names = _as_text(arrays[f"names_{number}"]).split(_BETWEEN)
                vectorizer.set_params(vocabulary={name: place for place, name in enumerate(names)})
                vectorizer.idf_ = arrays[f"idf_{number}"].astype(np.float64)
            classes = tuple(json.loads(_as_text(arrays["classes"])))
            weights_FV, bias_V = arrays["weights"].astype(np.float32), arrays["bias"].astype(np.float32)
            expected = (sum(len(vectorizer.vocabulary_) for vectorizer in vectorizers), len(classes))
            if weights_FV.shape != expected or bias_V.shape != expected[1:]:
                raise ValueError(f"weights of shape {weights_FV.shape}; expected {expected}")
    except Exception as error:  # a damaged archive raises errors of many types
        raise UserError(
            f"{where} is corrupt: {one_line(error)}; run the same `rootstock finetune` again to write it"
        ) from None
    return LinearText(classes, tuple(vectorizers), weights_FV, bias_V)


def _as_bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)


def _as_text(array: np.ndarray) -> str:
    return array.tobytes().decode("utf-8", "surrogatepass")
