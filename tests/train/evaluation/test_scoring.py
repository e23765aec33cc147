"""Held-out metrics of a model whose metrics are known."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import VOCAB, init, mesh_of, random_documents, tiny_model

from data.packing import PackedRows
from data.store import store_from_documents
from model.heads import language_model
from train.corpus.opened import HeldOut
from train.evaluation.scoring import language_model_evaluator


@pytest.mark.integration
def test_metrics_of_a_uniform_model():
    """With a zero output table all tokens are equally likely: log V nats per token, also if a batch is padded."""
    documents = random_documents(20)
    rows = PackedRows(store_from_documents(documents), 32)
    objective = language_model(tiny_model(tie_embeddings=False))
    params = init(objective)
    params["head"] = {"table": jnp.zeros_like(params["head"]["table"])}
    token_bytes = np.arange(VOCAB, dtype=np.float32)
    figures = language_model_evaluator(objective, token_bytes, {"": HeldOut(rows, 1.0)}, 8, 0, mesh_of())(params)
    targets = [token for document in documents for token in document[1:]]
    assert len(rows) % 8 and figures["targets"] == len(targets)
    assert figures["loss"] == pytest.approx(math.log(VOCAB), rel=1e-6)
    assert figures["bits_per_byte"] == pytest.approx(6 * len(targets) / sum(targets), rel=1e-6)
