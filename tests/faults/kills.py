"""A run that is killed repeatedly: in steps, in saves, while a save is committed, in evaluations.

The processes are forked from one that has imported everything and started nothing, so that each start takes a second or
two.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cpu import cpu_flags
from tests.faults.contract import Fault, Outcome

_ROOT = Path(__file__).resolve().parents[2]
_SAVE_EVERY, _EVALUATE_EVERY, _STEPS_PER_START = 5, 10, 12
_START_SECONDS = 120
KINDS = ("in a step", "in a save", "while committing", "in an evaluation")


def _config(text: Path, steps: int) -> dict[str, Any]:
    from configs.pretrain import tiny

    config = tiny.get_config()
    config.tokenizer, config.batch_size, config.sequence_length, config.num_steps = "chars", 4, 32, steps
    config.model.update({"embed_dim": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "mlp_dim": 48})
    config.data.path, config.data.validation_split = str(text), "tail"
    config.checkpoint.every, config.evaluation.every, config.logging.every = _SAVE_EVERY, _EVALUATE_EVERY, 1
    config.optimizer.warmup_steps = 2
    return config.to_dict()


def _start(text: Path, workdir: Path, steps: int) -> int:
    """Forks a process that trains and returns its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        log = os.open(workdir.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        from train.pretraining import pretrain

        pretrain(_config(text, steps), workdir)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _lines(workdir: Path) -> list[dict[str, Any]]:
    path, found = workdir / "metrics.jsonl", []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:  # being written, or cut by a kill
            continue
    return found


def _last_step(workdir: Path) -> int:
    return max((r["step"] for r in _lines(workdir) if r["phase"] == "train"), default=0)


def _saved(workdir: Path) -> int:
    folder = workdir / "checkpoints"
    return max((int(p.name) for p in folder.glob("*") if p.name.isdecimal()), default=0) if folder.is_dir() else 0


def _half_saved(workdir: Path) -> list[Path]:
    return list((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def _moment(kind: str, workdir: Path, rng: random.Random) -> Callable[[], bool]:
    """Returns a function, to be polled from the start of the process, that is true at a moment of this kind."""
    first, saved = _last_step(workdir), _saved(workdir)
    after = first + rng.randint(1, 2 * _SAVE_EVERY)

    def trained() -> bool:
        # Each start saves something before it is killed, or the run would make no progress.
        return _saved(workdir) > saved and _last_step(workdir) > first

    def committing() -> bool:
        return any((path / "manifest" / "metadata").exists() for path in _half_saved(workdir))

    def evaluating() -> bool:
        step = _last_step(workdir)
        evaluated = max((r["step"] for r in _lines(workdir) if r["phase"] == "eval"), default=0)
        return step % _EVALUATE_EVERY == 0 and evaluated < step

    return {
        "in a step": lambda: _last_step(workdir) >= after,
        "in a save": lambda: trained() and bool(_half_saved(workdir)),
        "while committing": lambda: trained() and committing(),
        "in an evaluation": lambda: trained() and evaluating(),
    }[kind]


def _ended(child: int) -> bool:
    return os.waitpid(child, os.WNOHANG)[0] == child


def _kill(kind: str, child: int, workdir: Path, rng: random.Random) -> bool:
    """Kills the process at a moment of this kind; returns False if it ended before."""
    reached, deadline = _moment(kind, workdir, rng), time.monotonic() + _START_SECONDS
    while not reached():
        if _ended(child) or time.monotonic() > deadline:
            return False
        time.sleep(0.0005)
    time.sleep(rng.uniform(0, 0.004))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def _manifest(workdir: Path, step: int) -> dict[str, Any]:
    return json.loads((workdir / "checkpoints" / str(step) / "manifest" / "metadata").read_text())["leaves"]


def main(directory: Path, kills: int, seed: int) -> dict[str, Any]:
    """Returns what came of so many kills; the whole run and its undisturbed twin are in `directory`."""
    import train.pretraining  # noqa: F401 - before the first fork

    rng, steps = random.Random(seed), kills * _STEPS_PER_START
    text = directory / "text.txt"
    text.write_text("".join(f"line {i} of a text that is long enough\n" for i in range(400)))
    plain, killed = directory / "plain", directory / "killed"
    plain.mkdir()
    killed.mkdir()
    if os.waitpid(_start(text, plain, steps), 0)[1]:
        raise RuntimeError((directory / "log").read_text()[-500:])
    kinds: Counter[str] = Counter()
    lost = 0
    most = 0
    for number in range(kills):
        kind = KINDS[number % len(KINDS)]
        if not _kill(kind, _start(text, killed, steps), killed, rng):
            break
        kinds[kind] += 1
        again = max(_last_step(killed) - _saved(killed), 0)
        lost, most = lost + again, max(most, again)
    code = os.waitstatus_to_exitcode(os.waitpid(_start(text, killed, steps), 0)[1])
    lines = [[(r["step"], r["loss"]) for r in _lines(run) if r["phase"] == "train"] for run in (plain, killed)]
    return {
        "kills": dict(kinds),
        "steps": steps,
        "lost": lost,
        "most": most,
        "code": code,
        "same": _manifest(plain, steps) == _manifest(killed, steps),
        "losses": lines[0] == lines[1] and [step for step, _ in lines[0]] == list(range(1, steps + 1)),
        "log": (directory / "log").read_text()[-500:] if code else "",
    }


def _inject(directory: Path, short: bool) -> Outcome:
    kills = 4 if short else 50
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(_ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(directory / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", "tests.faults.kills", str(directory), str(kills)]
    done = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return Outcome(f"{kills} SIGKILLs", False, 0, done.stderr[-300:])
    found = json.loads(done.stdout.splitlines()[-1])
    count = sum(found["kills"].values())
    kinds = ", ".join(f"{number} {kind}" for kind, number in found["kills"].items())
    survived = count == kills and found["code"] == 0 and found["same"] and found["losses"]
    # A save in progress at the kill is not committed.
    survived = survived and found["most"] <= 3 * _SAVE_EVERY
    seen = f"bitwise equal to an undisturbed run: {found['same']}, each step once: {found['losses']}; at most "
    seen += f"{found['most']} steps repeated after one kill {found['log']}"
    return Outcome(f"{count} SIGKILLs in {found['steps']} steps ({kinds})", survived, found["lost"], seen)


FAULTS = (Fault("SIGKILL", _inject),)

if __name__ == "__main__":
    # Instead of the eight devices of other tests, and before JAX starts.
    os.environ["XLA_FLAGS"] = cpu_flags(1)
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), seed=0)))
