"""The small runs behind `tests/golden/losses` and `tests/golden/runs`: deterministic data, 20 logged steps each."""

import json
import random
from pathlib import Path
from typing import Any

from configs.finetune import assistant, email_spam
from configs.pretrain import tiny
from train.finetuning.run import finetune
from train.pretraining import pretrain
from train.run.history import read_records

WORDS = "the cat sat on a mat and saw dog run far away home again".split()
STEPS = 20


def _sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def write_data(folder: Path) -> None:
    """Writes text.txt (300 sentences), labels.jsonl (160 rows of two classes) and chats.jsonl (120 conversations)."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    (folder / "text.txt").write_text("\n".join(f"{_sentence(rng, 8)}." for _ in range(300)))
    labels = [
        {"text": " ".join(rng.choices(WORDS[:7] if i % 2 else WORDS[7:], k=5)), "label": "odd" if i % 2 else "even"}
        for i in range(160)
    ]
    chats = [
        {
            "messages": [
                {"role": "user", "content": _sentence(rng, rng.randint(2, 5))},
                {"role": "assistant", "content": _sentence(rng, rng.randint(1, 4))},
            ]
            * rng.randint(1, 2)
        }
        for _ in range(120)
    ]
    for name, rows in (("labels", labels), ("chats", chats)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _config(config: Any, path: Path, **changes: Any) -> dict[str, Any]:
    config.batch_size, config.sequence_length, config.num_steps = 8, 64, STEPS
    config.data.path = str(path)
    config.logging.every = 1
    config.evaluation.every = config.checkpoint.every = STEPS
    config.evaluation.batches = 2
    config.optimizer.warmup_steps = 4
    config.update_from_flattened_dict(changes)
    return config.to_dict()


def pretrain_tiny(data: Path, workdir: Path, **changes: Any) -> None:
    """Pre-trains a two-layer byte model on text.txt."""
    config = tiny.get_config()
    config.tokenizer = "bytes"
    config.data.validation_split = "tail"
    config.model.update(
        {"embed_dim": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 48, "sliding_window": (16, 0)}
    )
    pretrain(_config(config, data / "text.txt", **changes), workdir)


def finetune_lora(data: Path, foundation: Path, workdir: Path, **changes: Any) -> None:
    """Fine-tunes a classifier by LoRA, on a data x fsdp x tensor mesh."""
    small = {
        "adapt.method": "lora",
        "adapt.rank": 2,
        "optimizer.learning_rate": 1e-3,
        "mesh.data": 2,
        "mesh.fsdp": 2,
        "mesh.tensor": 2,
        "task.baseline": False,
        "task.zero_shot_rows": 0,
    }
    finetune(_config(email_spam.get_config(), data / "labels.jsonl", **small | changes), foundation, workdir)


def finetune_chat(data: Path, foundation: Path, workdir: Path, **changes: Any) -> None:
    """Fine-tunes on packed conversations with gradient accumulation; only the assistant's turns are in the loss.

    Conversations are grouped by their first message, as before they were grouped by their content.
    """
    small = {"adapt.method": "full", "microbatches": 2, "mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
    changes = {"task.group": "{messages.0.content}"} | changes
    changes = small | {"task.baseline": False, "task.zero_shot_rows": 0} | changes
    finetune(_config(assistant.get_config(), data / "chats.jsonl", **changes), foundation, workdir)


def losses(workdir: Path) -> list[tuple[int, float]]:
    """Returns (step, loss) of each training step of a run."""
    return [(r["step"], r["loss"]) for r in read_records(workdir) if r["phase"] == "train"]
