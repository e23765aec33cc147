"""A run's settings as frozen dataclasses: the one place where a whole `ConfigDict` is read and checked."""

import dataclasses
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from configs.errors import UserError
from configs.schema import build
from data.store import is_store
from data.tokenizer_training import planned_vocab_size
from model.adapt import Adaptation
from model.config import ModelConfig, model_config

_VOCABULARY_MULTIPLE = 64
SECTIONS = (
    *("model", "mesh", "data", "task", "adapt", "optimizer", "loss", "evaluation", "checkpoint", "faults", "logging"),
)


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """`config.mesh`: devices an axis, -1 fills."""

    slice: int
    data: int
    fsdp: int
    tensor: int
    context: int


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """`config.data`."""

    path: str
    text_field: str
    strict: bool
    validation_fraction: float
    validation_split: Literal["documents", "tail"]
    num_workers: int
    prefetch: int


@dataclasses.dataclass(frozen=True)
class TaskSettings:
    """`config.task`."""

    name: str
    input: str
    context: str
    target: str
    group: str
    test_path: str
    test_fraction: float
    test_rows: int
    validation_fraction: float
    pooling: Literal["last", "mean"]
    multi_label: bool
    class_weights: Literal["none", "balanced"]
    template: Literal["plain", "chatml", "llama3", "gemma", "alpaca", "tokenizer"]
    metrics: tuple[str, ...]
    max_new_tokens: int
    beta: float
    baseline: bool
    prompt: str
    zero_shot_rows: int
    shots: int


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """`config.optimizer`."""

    name: Literal["adamw", "muon"]
    learning_rate: float
    muon_learning_rate: float
    muon_iterations: int
    schedule: Literal["cosine", "linear", "wsd"]
    warmup_steps: int
    decay_fraction: float
    final_fraction: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    clip_norm: float
    layer_decay: float


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """`config.loss`."""

    z_loss: float
    label_smoothing: float
    chunk: int


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """`config.evaluation`."""

    every: int
    batches: int
    metric: str
    patience: int


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
    """`config.checkpoint`."""

    every: int
    minutes: float
    keep: int
    keep_period: int
    best: bool


@dataclasses.dataclass(frozen=True)
class FaultSettings:
    """`config.faults`."""

    max_grad_norm: float
    max_consecutive_skips: int
    on_divergence: Literal["stop", "roll_back"]
    hang_seconds: float


@dataclasses.dataclass(frozen=True)
class LoggingSettings:
    """`config.logging`."""

    every: int
    tensorboard: bool


@dataclasses.dataclass(frozen=True)
class _Scalars:
    seed: int
    batch_size: int
    sequence_length: int
    num_steps: int
    microbatches: int
    tokenizer: str
    xla_flags: str


@dataclasses.dataclass(frozen=True)
class Settings(_Scalars):
    """A checked config; `model` stays a plain dict until the vocabulary is known (`model.config.model_config`)."""

    model: dict[str, Any]
    mesh: MeshSettings
    data: DataSettings
    task: TaskSettings
    adapt: Adaptation
    optimizer: OptimizerSettings
    loss: LossSettings
    evaluation: EvaluationSettings
    checkpoint: CheckpointSettings
    faults: FaultSettings
    logging: LoggingSettings


def from_config(config: Mapping[str, Any]) -> Settings:
    """Returns the `Settings` of a config.

    Raises:
        UserError: a field is unknown, missing, mistyped or out of range; every fault is named.
    """
    missing = [f"config.{name} is missing" for name in SECTIONS if name not in config]
    if missing:
        raise UserError("; ".join(missing))
    scalars = build(_Scalars, {k: v for k, v in config.items() if k not in SECTIONS}, "config")
    settings = Settings(
        **dataclasses.asdict(scalars),
        model=dict(config["model"]),
        mesh=build(MeshSettings, config["mesh"], "config.mesh"),
        data=build(DataSettings, config["data"], "config.data"),
        task=build(TaskSettings, config["task"], "config.task"),
        adapt=build(Adaptation, config["adapt"], "config.adapt"),
        optimizer=build(OptimizerSettings, config["optimizer"], "config.optimizer"),
        loss=build(LossSettings, config["loss"], "config.loss"),
        evaluation=build(EvaluationSettings, config["evaluation"], "config.evaluation"),
        checkpoint=build(CheckpointSettings, config["checkpoint"], "config.checkpoint"),
        faults=build(FaultSettings, config["faults"], "config.faults"),
        logging=build(LoggingSettings, config["logging"], "config.logging"),
    )
    _check_ranges(settings)
    # The numbers that only the data can fill in are stood in for, so that a fault shows before any data is read.
    model_config(settings.model | {k: settings.model[k] or 1 for k in ("vocab_size", "context_length")})
    return settings


def complete_model(settings: Settings, vocab_size: int) -> ModelConfig:
    """Returns the `ModelConfig`, with what `config.model` leaves at 0 filled in.

    Args:
        settings: of the run; `sequence_length` is the default of `context_length`.
        vocab_size: of the tokenizer; rounded up so that meshes divide it.

    Raises:
        UserError: the model has fewer tokens than the tokenizer, or rows are longer than its context.
    """
    section = dict(settings.model)
    section["vocab_size"] = section["vocab_size"] or -(-vocab_size // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE
    section["context_length"] = section["context_length"] or settings.sequence_length
    model = model_config(section)
    if model.vocab_size < vocab_size:
        raise UserError(
            f"config.model.vocab_size is {model.vocab_size}, but the tokenizer has {vocab_size} tokens; "
            f"legal: 0 or at least {vocab_size}"
        )
    if model.context_length < settings.sequence_length:
        raise UserError(
            f"config.sequence_length is {settings.sequence_length}; "
            f"legal: at most config.model.context_length {model.context_length}"
        )
    return model


def planned_model(settings: Settings) -> ModelConfig:
    """Returns the model of a config before there is any data: its tokenizer's size is what it may grow to.

    Raises:
        UserError: nothing says how large the vocabulary will be; or see `complete_model`.
    """
    path = settings.data.path
    size = planned_vocab_size(path if path and is_store(Path(path)) else settings.tokenizer)
    if size is None and not settings.model["vocab_size"]:
        raise UserError(
            f"config.tokenizer is {settings.tokenizer!r}, whose size only the text can tell; "
            "legal: set config.model.vocab_size"
        )
    return complete_model(settings, size or 0)


def _check_ranges(s: Settings) -> None:
    """Raises UserError naming every number that is out of range or does not divide what it must."""
    o = s.optimizer
    counts = {
        "batch_size": s.batch_size,
        "sequence_length": s.sequence_length,
        "num_steps": s.num_steps,
        "microbatches": s.microbatches,
        "evaluation.every": s.evaluation.every,
        "checkpoint.keep": s.checkpoint.keep,
        "faults.max_consecutive_skips": s.faults.max_consecutive_skips,
        "logging.every": s.logging.every,
        "data.prefetch": s.data.prefetch,
        "task.max_new_tokens": s.task.max_new_tokens,
        "optimizer.muon_iterations": o.muon_iterations,
    }
    faults = [f"config.{name} is {value}; legal: at least 1" for name, value in counts.items() if value < 1]
    at_least_0 = {
        "loss.chunk": s.loss.chunk,
        "loss.z_loss": s.loss.z_loss,
        "data.num_workers": s.data.num_workers,
        "task.test_rows": s.task.test_rows,
        "task.zero_shot_rows": s.task.zero_shot_rows,
        "task.shots": s.task.shots,
        "task.beta": s.task.beta,
        "evaluation.batches": s.evaluation.batches,
        "evaluation.patience": s.evaluation.patience,
        "optimizer.warmup_steps": o.warmup_steps,
        "optimizer.learning_rate": o.learning_rate,
        "optimizer.weight_decay": o.weight_decay,
        "optimizer.clip_norm": o.clip_norm,
        "faults.max_grad_norm": s.faults.max_grad_norm,
        "checkpoint.every": s.checkpoint.every,
        "faults.hang_seconds": s.faults.hang_seconds,
        "checkpoint.minutes": s.checkpoint.minutes,
        "checkpoint.keep_period": s.checkpoint.keep_period,
    }
    faults += [f"config.{name} is {value}; legal: at least 0" for name, value in at_least_0.items() if value < 0]
    fractions = {
        "data.validation_fraction": s.data.validation_fraction,
        "task.test_fraction": s.task.test_fraction,
        "task.validation_fraction": s.task.validation_fraction,
        "loss.label_smoothing": s.loss.label_smoothing,
        "optimizer.decay_fraction": o.decay_fraction,
        "optimizer.final_fraction": o.final_fraction,
        "optimizer.layer_decay": o.layer_decay,
        "optimizer.beta1": o.beta1,
        "optimizer.beta2": o.beta2,
    }
    faults += [f"config.{name} is {v}; legal: 0 to 1" for name, v in fractions.items() if not 0 <= v <= 1]
    if not faults and s.batch_size % s.microbatches:
        faults.append(f"config.microbatches is {s.microbatches}; legal: a divisor of batch_size {s.batch_size}")
    if not faults and s.loss.chunk and s.sequence_length % s.loss.chunk:
        faults.append(f"config.loss.chunk is {s.loss.chunk}; legal: a divisor of sequence_length {s.sequence_length}")
    if s.checkpoint.best and s.faults.on_divergence == "roll_back":
        faults.append("config.faults.on_divergence='roll_back' would undo what checkpoint.best keeps; expected 'stop'")
    patterns = ("input", "context", "group", "prompt")
    faults += [fault for name in patterns if (fault := _pattern_fault(f"config.task.{name}", getattr(s.task, name)))]
    if faults:
        raise UserError("; ".join(faults))


def _pattern_fault(name: str, pattern: str) -> str:
    try:
        parts = list(string.Formatter().parse(pattern))
    except ValueError as error:
        return f"{name} is {pattern!r} ({error}); legal: a text with names in braces"
    plain = all(not spec and not conversion for _, _, spec, conversion in parts)
    return "" if plain else f"{name} is {pattern!r}; legal: names alone in braces, no ':' or '!'"
