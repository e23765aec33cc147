"""Serves a model over HTTP, for trying it and for small teams.

Language models: /v1/chat/completions and /v1/completions, as OpenAI's clients speak them, also streamed. Task heads:
/predict, with calibrated probabilities. The page to try it is http://127.0.0.1:8000/. Only this machine can reach the
server, unless --host is given, which needs an API key. Needs `pip install -e '.[serve]'`.

  rootstock serve --run=runs/assistant
  ROOTSTOCK_API_KEY=... rootstock serve --run=runs/intent --host=0.0.0.0 --port=80
"""

import os

from absl import flags

from configs.errors import UserError
from data.storage.paths import at
from data.templates import NAMES

REQUIRED = ("run",)
KEY_VARIABLE = "ROOTSTOCK_API_KEY"


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("run", None, "Directory of a run.", flag_values=values)
    flags.DEFINE_string(
        "host", "127.0.0.1", "Name or address to listen at; others need an API key.", flag_values=values
    )
    text = "Port to listen at; 0: one that is free."
    flags.DEFINE_integer("port", 8000, text, lower_bound=0, upper_bound=65535, flag_values=values)
    text = f"Key that clients must send; also {KEY_VARIABLE} in the environment, which other users cannot list."
    flags.DEFINE_string("api_key", "", text, flag_values=values)
    flags.DEFINE_string("name", "", "Name of the model; empty: that of the run's directory.", flag_values=values)
    text = "Chat template; empty: that of the run, else the tokenizer's, else plain_chat."
    flags.DEFINE_enum("template", "", ["", *NAMES], text, flag_values=values)
    text = "KV cache: auto (the compute dtype), bfloat16 or int8; empty: the run's setting."
    flags.DEFINE_enum("cache_dtype", "", ["", "auto", "bfloat16", "int8"], text, flag_values=values)
    flags.DEFINE_integer("slots", 8, "Texts generated at the same time.", lower_bound=1, flag_values=values)
    text = "The most tokens of a prompt and its answer together; the model's context may allow fewer."
    flags.DEFINE_integer("max_length", 2048, text, lower_bound=2, flag_values=values)
    flags.DEFINE_integer("max_tokens", 1024, "The most tokens of an answer.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("top_k", 5, "Classes per row, most likely first.", lower_bound=1, flag_values=values)
    text = "The most requests that wait; further ones are refused with status 503."
    flags.DEFINE_integer("max_waiting", 128, text, lower_bound=1, flag_values=values)
    flags.DEFINE_integer("max_body", 1_000_000, "The most bytes of a request.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "max_rows", 256, "The most rows of one request to /predict.", lower_bound=1, flag_values=values
    )
    text = "Seconds, with waiting, after which a request that has been read ends with status 504."
    flags.DEFINE_float("timeout", 120.0, text, lower_bound=0.001, flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    try:
        from train.serving.server import Address, ServeOptions, serve
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise UserError(f"serve needs the package {error.name}: pip install -e '.[serve]'") from None
    from train.serving.limits import Limits

    key = values.api_key or os.environ.get(KEY_VARIABLE, "")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError("--api_key must be printable ASCII without spaces: HTTP headers cannot carry others")
    limits = Limits(
        values.slots, values.max_length, values.max_tokens, values.max_waiting, values.max_body, values.max_rows,
        values.timeout,
    )  # fmt: skip
    options = ServeOptions(values.name, key, values.template, values.cache_dtype, values.top_k)
    serve(at(values.run), Address(values.host, values.port), limits, options)
