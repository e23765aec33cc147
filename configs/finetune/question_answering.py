"""Question answering on a text: "span" extracts the answer from it, "generative" writes the answer.

Command:  rootstock finetune --config=configs/finetune/question_answering.py --init_from=runs/books \
              --workdir=runs/qa --config.data.path=squad.jsonl
          ...question_answering.py:generative... to write answers
Data:     JSONL, Parquet or hf:NAME with the columns of SQuAD: "context", "question", "answers" and "title";
          rows without titles: --config.task.group="{context}"
Mesh:     one CPU; any `--config.mesh` that matches the number of devices.
"""

from ml_collections import ConfigDict

from configs import default
from configs.errors import UserError


def get_config(variant: str = "span") -> ConfigDict:
    """Returns the config of "span" or "generative"."""
    config = default.get_config()
    config.batch_size = 8
    config.sequence_length = 512
    config.num_steps = 400
    config.task.target = "answers"
    config.task.group = "{title}"
    config.task.prompt = "{context}\nQuestion: {input}\nAnswer:"
    config.task.max_new_tokens = 24
    config.task.shots = 1
    config.task.validation_fraction = 0.1
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 40
    config.evaluation.every = 200
    config.checkpoint.every = 200
    if variant == "span":
        config.task.name = "span"
        config.task.input = "{question}"
    elif variant == "generative":
        config.task.name = "generation"
        config.task.input = "Question: {question}\n{context}"
        config.task.prompt = "{input}\nAnswer:"
        config.task.metrics = ("squad",)
    else:
        raise UserError(f"question_answering.py:{variant} is unknown; expected span or generative")
    return config
