"""`rootstock <command> [flags]`: parses flags, runs the command, and turns a user's mistake into one line."""

import importlib
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import config_flags

from configs.errors import UserError, did_you_mean, end
from train.distributed.sigterm import exit_on_sigterm

COMMANDS = {
    "prepare": "text -> token store",
    "pretrain": "token store or text -> foundation model",
    "finetune": "foundation model + labelled rows -> task model, with a before/after table",
    "import-hf": "Hugging Face weights -> a model like one of our own",
    "export-hf": "a model -> Hugging Face's format",
    "checkpoint": "what a run's checkpoints hold: ls, verify, diff, prune",
    "replay": "a step of a run once more, bit for bit, and the documents its loss came from",
    "merge": "adapter + its foundation -> a model that needs no other",
    "evaluate": "score a model on text or on labelled rows",
    "generate": "continue prompts, or answer them",
    "chat": "talk with a model",
    "show-batch": "the tokens of a batch in colours: segments, what is masked, what is learnt",
    "certify": "proof that a config trains the same on every mesh",
    "explain-sharding": "where each parameter of a config lives, and why",
    "plan": "memory, time and money of a config on chips that are not here",
    "scaling": "a ladder of small runs -> the model size and the tokens that a compute budget calls for",
    "demo": "all of it, on this machine's own Python documentation",
}
_ROOT = Path(__file__).resolve().parent.parent


def main(argv: list[str] | None = None) -> None:
    """Runs `rootstock` and exits.

    0: success; 1: a user's mistake; 2: a wrong command line; 75: SIGTERM, saved, run it again; 130: Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        exit_on_sigterm(arguments)
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(_overview())
        sys.exit(0 if arguments else 2)
    name = arguments[0]
    if name not in COMMANDS:
        end(f"unknown command {name!r}{did_you_mean(name, COMMANDS)}; commands: {', '.join(COMMANDS)}", 2)
    command = importlib.import_module(f"train.commands.{name.replace('-', '_')}")
    values = parse(name, command, arguments[1:])
    # Grain's worker processes read absl's global flags.
    flags.FLAGS(["rootstock"])
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        if getattr(command, "MULTI_PROCESS", False):
            from train.distributed.processes import run_together

            run_together(lambda: command.run(values), preemptible=getattr(command, "PREEMPTIBLE", False))
        else:
            command.run(values)
    except UserError as error:
        end(str(error), getattr(error, "exit_code", 1))
    except KeyboardInterrupt:
        end("interrupted; run the same command again to go on", 130)


def parse(name: str, command: ModuleType, arguments: list[str]) -> flags.FlagValues:
    """Returns the parsed flags of a command; prints help or one line of error and exits where that is due."""
    values = flags.FlagValues()
    command.define_flags(values)
    for place, positional in enumerate(getattr(command, "POSITIONAL", ())):
        if place < len(arguments) and not arguments[place].startswith("-"):
            arguments[place] = f"--{positional}={arguments[place]}"
    has_config = "config" in (*getattr(command, "REQUIRED", ()), *getattr(command, "OPTIONAL", ()))
    if has_config:
        arguments = [_locate_config(argument) for argument in arguments]
        _define_config(values, arguments)
    if "--help" in arguments or "-h" in arguments:
        print(_help(name, command, values))
        sys.exit(0)
    try:
        if has_config:
            _check_fields(arguments)
        rest = values(["rootstock", *arguments])[1:]
        if rest:
            raise UserError(f"unexpected argument {rest[0]!r}; flags are written --name=value")
        for flag in getattr(command, "REQUIRED", ()):
            if not values[flag].value:
                raise UserError(f"--{flag} is missing; see rootstock {name} --help")
    # A config file is the user's Python: whatever it raises is theirs to read, on one line.
    except Exception as error:
        end(" ".join(str(error).split()) or type(error).__name__, 2)
    return values


def _define_config(values: flags.FlagValues, arguments: list[str]) -> None:
    text = "Config file; any field can be set: --config.FIELD=VALUE."
    argv = ["rootstock", *arguments]
    config_flags.DEFINE_config_file("config", None, text, flag_values=values, sys_argv=argv)


def _check_fields(arguments: list[str]) -> None:
    """Raises UserError for a `--config.FIELD` that the config does not have, which absl reports without its name."""
    file = [argument for argument in arguments if argument.startswith("--config=")]
    values = flags.FlagValues()
    _define_config(values, file)
    values(["rootstock", *file])
    known = _field_names(values.config.to_dict()) if file else []
    for argument in arguments:
        field = argument.removeprefix("--").partition("=")[0]
        if file and field.startswith("config.") and field.partition("[")[0] not in known:
            raise UserError(f"{field} is unknown{did_you_mean(field, known)}")


def _field_names(tree: dict[str, Any], prefix: str = "config") -> list[str]:
    nested = [_field_names(v, f"{prefix}.{k}") if isinstance(v, dict) else [f"{prefix}.{k}"] for k, v in tree.items()]
    return [name for names in nested for name in names]


def _locate_config(argument: str) -> str:
    """Returns `--config=configs/...` with a path that exists: the working directory's, else the installed one."""
    flag, _, path = argument.partition("=")
    if flag not in ("--config", "-config") or not path:
        return argument
    file = path.partition(":")[0]
    if not Path(file).is_file() and (_ROOT / file).is_file():
        return f"{flag}={_ROOT / path}"
    if not Path(file).is_file():
        shipped = sorted(str(p.relative_to(_ROOT)) for p in (_ROOT / "configs").glob("*/*.py") if p.stem != "__init__")
        end(f"--config={file}: no such file{did_you_mean(file, shipped)}; shipped: {', '.join(shipped)}", 2)
    return argument


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(["usage: rootstock COMMAND [--flag=value ...]", "", *lines, "", "rootstock COMMAND --help"])


def _help(name: str, command: ModuleType, values: flags.FlagValues) -> str:
    own = [flag for flag in values.get_flags_for_module(command.__name__) or []]
    own += [values[flag] for flag in ("config",) if flag in values]
    seen = {flag.name: flag for flag in own}
    required = getattr(command, "REQUIRED", ())
    lines = []
    for flag in sorted(seen.values(), key=lambda flag: flag.name not in required):
        note = "required" if flag.name in required else f"default {flag.default!r}" if flag.default else ""
        lines.append(f"  --{flag.name}  {flag.help}{f' ({note})' if note else ''}")
    return "\n".join([f"rootstock {name}: {(command.__doc__ or '').strip()}", "", "flags:", *lines])
