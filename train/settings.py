"""A run's settings: frozen dataclasses that declare each config field's type, its range and whether it may change.

Meanings and defaults are in `configs/default.py`. `from_config` checks a whole `ConfigDict` at once.
"""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from configs.errors import UserError
from configs.schema import RESUMABLE, at_least, between, build, find_errors, resumable_fields
from data.columns import parse_pattern
from data.mixture import MixtureChange, MixtureSource, mixture_errors
from data.storage.paths import at, is_url
from data.store import is_store
from data.tokenizer_training import planned_vocab_size
from model.adaptation import Adaptation
from model.config import EXECUTION_FIELDS, ModelConfig, model_config

_VOCABULARY_MULTIPLE = 64
# XLA keeps a trace in memory until it is written, and drops what is beyond its limits.
MOST_PROFILED_STEPS = 100


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """`config.mesh`: devices per axis; -1 fills."""

    slice: int
    data: int
    expert: int
    fsdp: int
    tensor: int
    context: int


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """`config.data`."""

    # A resumed run's data are compared by fingerprint, not by path.
    path: Annotated[str, RESUMABLE]
    # A resumed run's past weights are compared in `train.run.mixture_change`.
    mixture: Annotated[tuple[MixtureSource, ...], RESUMABLE]
    mixture_schedule: Annotated[tuple[MixtureChange, ...], RESUMABLE]
    max_epochs: Annotated[float, at_least(0), RESUMABLE]
    text_field: str
    strict: bool
    validation_fraction: Annotated[float, between(0, 1)]
    validation_split: Literal["documents", "tail"]
    num_workers: Annotated[int, at_least(0), RESUMABLE]
    prefetch: Annotated[int, at_least(1), RESUMABLE]
    cache: Annotated[str, RESUMABLE]


@dataclasses.dataclass(frozen=True)
class TaskSettings:
    """`config.task`."""

    name: str
    input: str
    context: str
    target: str
    group: str
    test_path: str
    test_fraction: Annotated[float, between(0, 1)]
    test_rows: Annotated[int, at_least(0)]
    validation_fraction: Annotated[float, between(0, 1)]
    labels_per_class: Annotated[int, at_least(0)]
    min_epochs: Annotated[float, at_least(0)]
    missing: Literal["error", "empty"]
    row_rules: Annotated[int, between(1, 2)]
    attention: Literal["auto", "causal", "bidirectional"]
    pooling: Literal["auto", "last", "mean"]
    multi_label: bool
    class_weights: Literal["none", "balanced"]
    out_of_scope: str
    center: bool
    template: Literal["plain", "plain_chat", "chatml", "llama3", "gemma", "alpaca", "tokenizer"]
    metrics: tuple[str, ...]
    max_new_tokens: Annotated[int, at_least(1)]
    beta: Annotated[float, at_least(0)]
    baseline: bool
    alternatives: bool
    ensemble: Annotated[bool, RESUMABLE]
    prompt: str
    zero_shot_rows: Annotated[int, at_least(0)]
    shots: Annotated[int, at_least(0)]


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """`config.optimizer`."""

    name: Literal["adamw", "muon"]
    learning_rate: Annotated[float, at_least(0)]
    muon_learning_rate: Annotated[float, at_least(0)]
    muon_iterations: Annotated[int, at_least(1)]
    schedule: Literal["cosine", "linear", "wsd", "constant"]
    warmup_steps: Annotated[int, at_least(0)]
    decay_fraction: Annotated[float, between(0, 1)]
    final_fraction: Annotated[float, between(0, 1)]
    beta1: Annotated[float, between(0, 1)]
    beta2: Annotated[float, between(0, 1)]
    first_moment: Literal["float32", "bfloat16", "int8"]
    second_moment: Literal["float32", "factored", "int8"]
    epsilon: Annotated[float, at_least(0)]
    weight_decay: Annotated[float, at_least(0)]
    clip_norm: Annotated[float, at_least(0)]
    router_bias_rate: Annotated[float, at_least(0)]
    ema: Annotated[float, between(0, 1)]
    layer_decay: Annotated[float, between(0, 1)]


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """`config.loss`."""

    z_loss: Annotated[float, at_least(0)]
    router_z_loss: Annotated[float, at_least(0)]
    balance_loss: Annotated[float, at_least(0)]
    label_smoothing: Annotated[float, between(0, 1)]
    chunk: Annotated[int, at_least(0)]


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """`config.evaluation`."""

    every: Annotated[int, at_least(1)]
    batches: Annotated[int, at_least(0)]
    metric: str
    patience: Annotated[int, at_least(0)]


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
    """`config.checkpoint`."""

    every: Annotated[int, at_least(0), RESUMABLE]
    minutes: Annotated[float, at_least(0), RESUMABLE]
    keep: Annotated[int, at_least(1), RESUMABLE]
    keep_period: Annotated[int, at_least(0), RESUMABLE]
    # Commands read the run's best parameters if this is set, which earlier evaluations did not save if it was not.
    best: bool
    local_path: Annotated[str, RESUMABLE]
    local_every: Annotated[int, at_least(1), RESUMABLE]


@dataclasses.dataclass(frozen=True)
class FaultSettings:
    """`config.faults`."""

    max_grad_norm: Annotated[float, at_least(0)]
    max_consecutive_skips: Annotated[int, at_least(1)]
    on_divergence: Literal["stop", "roll_back"]
    hang_seconds: Annotated[float, at_least(0)]


@dataclasses.dataclass(frozen=True)
class LoggingSettings:
    """`config.logging`."""

    every: Annotated[int, at_least(1)]
    tensorboard: bool
    tracker: Annotated[Literal["none", "wandb", "trackio"], RESUMABLE]
    project: Annotated[str, RESUMABLE]
    profile_steps: Annotated[tuple[int, ...], RESUMABLE]


@dataclasses.dataclass(frozen=True)
class _Scalars:
    seed: Annotated[int, between(0, 2**63 - 1)]  # NumPy takes no negative one, the shuffle 64 bits
    batch_size: Annotated[int, at_least(1)]
    sequence_length: Annotated[int, at_least(1)]
    num_steps: Annotated[int, at_least(1)]
    microbatches: Annotated[int, at_least(1), RESUMABLE]
    tokenizer: str
    xla_flags: Annotated[str, RESUMABLE]


@dataclasses.dataclass(frozen=True)
class Settings(_Scalars):
    """A checked config; `model` stays a plain dict until the vocabulary is known (`model.config.model_config`)."""

    model: dict[str, Any]
    mesh: Annotated[MeshSettings, RESUMABLE]
    data: DataSettings
    task: TaskSettings
    adapt: Adaptation
    optimizer: OptimizerSettings
    loss: LossSettings
    evaluation: Annotated[EvaluationSettings, RESUMABLE]
    checkpoint: CheckpointSettings
    faults: Annotated[FaultSettings, RESUMABLE]
    logging: Annotated[LoggingSettings, RESUMABLE]


# {section: its dataclass}
SECTIONS: dict[str, type] = {
    name: ModelConfig if name == "model" else kind
    for name, kind in typing.get_type_hints(Settings).items()
    if name == "model" or dataclasses.is_dataclass(kind)
}
# Whole names, e.g. "mesh.fsdp", of the fields that may change when a run resumes.
RESUMABLE_FIELDS = frozenset({*resumable_fields(Settings), *(f"model.{name}" for name in EXECUTION_FIELDS)})


def from_config(config: Mapping[str, Any]) -> Settings:
    """Returns the `Settings` of a config.

    Raises:
        UserError: fields that are unknown, missing, mistyped or out of range, all of them in one message.
    """
    missing = [f"config.{name} is missing" for name in SECTIONS if name not in config]
    if missing:
        raise UserError("; ".join(missing))
    scalars = {name: value for name, value in config.items() if name not in SECTIONS}
    sections = {name: kind for name, kind in SECTIONS.items() if name != "model"}
    errors = find_errors(_Scalars, scalars, "config")
    errors += _model_errors(config["model"])
    for name, kind in sections.items():
        errors += find_errors(kind, config[name], f"config.{name}")
    if errors:
        raise UserError("; ".join(errors))
    settings = Settings(
        **dataclasses.asdict(build(_Scalars, scalars, "config")),
        model=dict(config["model"]),
        **{name: build(kind, config[name], f"config.{name}") for name, kind in sections.items()},
    )
    errors = _combination_errors(settings)
    if errors:
        raise UserError("; ".join(errors))
    return settings


def complete_model(settings: Settings, vocab_size: int) -> ModelConfig:
    """Returns the `ModelConfig`, with the sizes that `config.model` leaves at 0 filled in.

    Args:
        settings: the run's settings; `sequence_length` is the default of `context_length`.
        vocab_size: the number of tokens in the tokenizer; rounded up so that meshes divide it.

    Raises:
        UserError: the vocabulary is smaller than the tokenizer's, or rows are longer than the context.
    """
    section = dict(settings.model)
    section["vocab_size"] = section["vocab_size"] or -(-vocab_size // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE
    section["context_length"] = section["context_length"] or settings.sequence_length
    model = model_config(section)
    if model.vocab_size < vocab_size:
        raise UserError(
            f"config.model.vocab_size={model.vocab_size} must be 0 or at least {vocab_size}, the number of tokens in "
            "the tokenizer"
        )
    if model.context_length < settings.sequence_length:
        raise UserError(
            f"config.sequence_length={settings.sequence_length} must be at most config.model.context_length "
            f"({model.context_length})"
        )
    return model


def planned_model(settings: Settings) -> ModelConfig:
    """Returns the model of a config without reading text; the tokenizer gets the size that its spec asks for.

    Raises:
        UserError: the size of the vocabulary depends on the text; or see `complete_model`.
    """
    paths = [settings.data.path, *(source.path for source in settings.data.mixture)]
    stores = (path for path in paths if path and is_store(at(path)))
    size = planned_vocab_size(next(stores, settings.tokenizer))
    if size is None and not settings.model["vocab_size"]:
        raise UserError(
            f"config.tokenizer={settings.tokenizer!r} gets its size from the text; set config.model.vocab_size"
        )
    return complete_model(settings, size or 0)


def _model_errors(section: Mapping[str, Any]) -> list[str]:
    """Returns what is wrong with `config.model`; sizes that depend on the data get placeholders."""
    if "causal" in section:
        return ["config.model.causal is unknown; a task that does not write text sets config.task.attention"]
    placeholders = {name: section[name] or 1 for name in ("vocab_size", "context_length") if name in section}
    try:
        model_config(dict(section) | placeholders)
    except UserError as error:
        return [str(error)]
    return []


def _combination_errors(s: Settings) -> list[str]:
    """Returns what is wrong with fields that depend on each other, and with the patterns of `config.task`."""
    errors = []
    if s.batch_size % s.microbatches:
        errors.append(f"config.microbatches={s.microbatches} must divide config.batch_size ({s.batch_size})")
    if s.loss.chunk and s.sequence_length % s.loss.chunk:
        errors.append(f"config.loss.chunk={s.loss.chunk} must divide config.sequence_length ({s.sequence_length})")
    if s.checkpoint.best and s.faults.on_divergence == "roll_back":
        errors.append(
            "config.faults.on_divergence='roll_back' would roll back config.checkpoint.best as well; expected 'stop'"
        )
    errors += mixture_errors(s.data.mixture, s.data.mixture_schedule)
    profile_steps = s.logging.profile_steps
    if profile_steps and (len(profile_steps) != 2 or min(profile_steps) < 1 or profile_steps[1] > MOST_PROFILED_STEPS):
        errors.append(
            f"config.logging.profile_steps={profile_steps}; expected (FIRST, COUNT), FIRST at least 1 and COUNT "
            f"between 1 and {MOST_PROFILED_STEPS}, or () for no profile"
        )
    for name, path in (("data.cache", s.data.cache), ("checkpoint.local_path", s.checkpoint.local_path)):
        if is_url(path):
            errors.append(f"config.{name}={path!r} is in a bucket; expected a directory of this machine")
    errors += _optimizer_errors(s.optimizer)
    patterns = ("input", "context", "group", "prompt")
    errors += [error for name in patterns if (error := _pattern_error(f"config.task.{name}", getattr(s.task, name)))]
    return errors


def _optimizer_errors(settings: OptimizerSettings) -> list[str]:
    """Returns which values lie in their range and make parameters NaN in the first step, or do nothing."""
    errors = [
        f"config.optimizer.{name}=1.0 would divide by 0 in the first step; expected a factor below 1"
        for name in ("beta1", "beta2")
        if getattr(settings, name) == 1
    ]
    if settings.epsilon == 0:
        errors.append("config.optimizer.epsilon=0.0 would divide 0 by 0 where a gradient is 0; expected e.g. 1e-8")
    if settings.ema == 1:
        errors.append("config.optimizer.ema=1.0 would keep the initial parameters; expected a factor below 1, 0: off")
    return errors


def _pattern_error(name: str, pattern: str) -> str:
    try:
        parse_pattern(pattern)
    except UserError as error:
        return f"{name}={pattern!r}: {error}; expected text with column names in braces, e.g. '{{text}}'"
    return ""
