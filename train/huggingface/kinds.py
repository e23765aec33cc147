"""What a source is that is not a language model of safetensors: each kind is one clear error."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.errors import UserError
from model.huggingface.experts import refuse_mixture
from model.huggingface.families import ARCHITECTURES

_LANGUAGE_MODEL = "expected a decoder-only language model of text"
# Sections that a model has for inputs other than text, and what it is then called.
_MODALITIES = {
    "vision_config": "a vision-language model",
    "audio_config": "an audio-language model",
    "speech_config": "an audio-language model",
}
# Names of `model_type` that say the same, in files that have no such section.
_VISION = ("llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "paligemma", "idefics", "mllama", "internvl", "smolvlm")
_ENCODER_DECODERS = ("t5", "mt5", "umt5", "byt5", "longt5", "bart", "mbart", "marian", "pegasus", "m2m_100", "whisper")
_ENCODERS = (
    "bert", "roberta", "xlm-roberta", "distilbert", "albert", "electra", "deberta", "deberta-v2", "mpnet", "modernbert",
    "nomic_bert", "camembert", "ernie", "longformer", "big_bird", "xlnet", "eurobert", "new", "jina_bert_v3",
)  # fmt: skip
# Files that only another kind of directory has.
_OTHER_DIRECTORIES = {
    "model_index.json": "a diffusion pipeline",
    "modules.json": "an embedding model of sentence-transformers",
    "config_sentence_transformers.json": "an embedding model of sentence-transformers",
}
ADAPTER_CONFIG = "adapter_config.json"
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
_NOT_QUANTIZED = "import the model that was quantized, or a GGUF file"


def check_directory(directory: Path) -> None:
    """Raises UserError if a directory contains something other than a language model, and says what."""
    weights = any(path for pattern in _WEIGHTS for path in directory.glob(pattern))
    if (directory / ADAPTER_CONFIG).is_file() and not weights:
        raise UserError(
            f"{directory} is an adapter of PEFT ({ADAPTER_CONFIG}); to import it, add --base=RUN, the run of the model "
            "that it was trained on"
        )
    for name, kind in _OTHER_DIRECTORIES.items():
        if (directory / name).is_file():
            raise UserError(f"{directory} is {kind} ({name}); {_LANGUAGE_MODEL}")
    if (directory / "config.json").is_file():
        return
    files = sorted(path.name for path in directory.glob("*.gguf"))
    if files:
        listed = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
        raise UserError(
            f"{directory} has no config.json, but GGUF files ({listed}); import one: {directory}/{files[0]}"
        )


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Raises UserError for the config.json of a model that is quantized, or no language model of text alone.

    A mixture of experts that is not supported is refused first: most of them are quantized too.

    Args:
        config: the contents.
        where: names the file in the error.
    """
    kind = _kind_of(config)
    if kind:
        raise UserError(f"{where}: model_type={config.get('model_type')!r:.60} is {kind}; {_LANGUAGE_MODEL}")
    if config.get("model_type") not in ARCHITECTURES:
        refuse_mixture(config, where)
    for name in ("quantization_config", "compression_config"):
        if config.get(name):
            raise UserError(
                f"{where}: {name} ({_method(config[name])}): quantized weights are not supported; {_NOT_QUANTIZED}"
            )


def _kind_of(config: Mapping[str, Any]) -> str:
    """Returns what a model is that is not a decoder of text alone; "" for one that may be."""
    name = config.get("model_type")
    name = name if isinstance(name, str) else ""
    section = next((key for key in _MODALITIES if config.get(key)), None)
    if section:
        return f"{_MODALITIES[section]} ({section})"
    if name.startswith(_VISION):
        return "a vision-language model"
    if config.get("text_config"):
        return "a model of several kinds of input (text_config)"
    if config.get("is_encoder_decoder") or name in _ENCODER_DECODERS:
        return "an encoder-decoder model"
    return "an encoder, for embeddings or masked tokens" if name in _ENCODERS else ""


def _method(section: object) -> str:
    """Returns the name of the method of quantization, as far as the config tells."""
    if not isinstance(section, Mapping):
        return repr(section)[:60]
    bits = next((f", {name}" for name in ("load_in_4bit", "load_in_8bit") if section.get(name)), "")
    bits = f", {section['bits']} bits" if section.get("bits") else bits
    return f"{section.get('quant_method') or section.get('format') or 'unknown method'}{bits}"


def check_dtypes(dtypes: Mapping[str, str], where: str) -> None:
    """Raises UserError if a tensor's type is not a floating-point type of at least 16 bits.

    Args:
        dtypes: tensor name -> type in the words of the safetensors format, e.g. "BF16" or "F8_E4M3".
        where: names the file in the error.
    """
    packed = {name: dtype for name, dtype in dtypes.items() if dtype not in ("F64", "F32", "F16", "BF16")}
    if packed:
        name, dtype = next(iter(packed.items()))
        raise UserError(
            f"{where}: {len(packed)} of {len(dtypes)} tensors are not floating-point numbers of 16 bits or more, "
            f"such as {name} ({dtype}): quantized weights are not supported; {_NOT_QUANTIZED}"
        )
