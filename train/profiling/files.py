"""The files of a profile, in the layout that XProf reads: RUN/profile/plugins/profile/steps-FIRST-LAST/."""

import dataclasses
import gzip
import json
import re
from pathlib import Path

from configs.errors import UserError
from data.storage.files import file_sizes, new_file

_DIRECTORY = "profile"
_WINDOW_FILE = "window.json"
_PROGRAM_FILE = "program.hlo.txt.gz"
_TRACE = re.compile(r"process-(\d+)\.xplane\.pb")


@dataclasses.dataclass(frozen=True)
class Window:
    """The steps of a profile and the machine that ran them.

    Attributes:
        first: the first step, counted from 1 as in metrics.jsonl.
        count: number of steps.
        title: what was trained: "pretrain", or a model of the comparison table.
        devices: number of JAX devices, over all processes.
        device_kind: JAX's name of the devices.
        chip: key of `CHIPS`, or None for a chip that is not listed there (a CPU).
        model_flops: FLOPs of the model per step, over all devices, without recomputation.
        tokens: tokens per step.
        versions: of JAX and jaxlib.
    """

    first: int
    count: int
    title: str
    devices: int
    device_kind: str
    chip: str | None
    model_flops: float
    tokens: int
    versions: str

    @property
    def last(self) -> int:
        """The last step."""
        return self.first + self.count - 1


def profile_directory(workdir: Path) -> Path:
    """Returns the directory that XProf and TensorBoard take as their `--logdir`."""
    return workdir / _DIRECTORY


def window_directory(workdir: Path, first: int, last: int) -> Path:
    """Returns where the profile of these steps is."""
    return profile_directory(workdir) / "plugins" / "profile" / f"steps-{first}-{last}"


def trace_file(directory: Path, process: int) -> Path:
    """Returns the trace of a process."""
    return directory / f"process-{process}.xplane.pb"


def perfetto_file(directory: Path, process: int) -> Path:
    """Returns the trace of a process for Perfetto."""
    return directory / f"process-{process}.trace.json.gz"


def write_window(directory: Path, window: Window, program: str) -> None:
    """Writes what the traces need to be read: the window, and the text of the compiled step."""
    with new_file(directory / _PROGRAM_FILE) as path:
        path.write_bytes(gzip.compress(program.encode()))
    with new_file(directory / _WINDOW_FILE) as path:
        path.write_text(json.dumps(dataclasses.asdict(window), indent=1) + "\n")


def read_window(directory: Path) -> tuple[Window, str]:
    """Returns (window, text of the compiled step).

    Raises:
        UserError: one of the files is missing or damaged.
    """
    try:
        values = json.loads((directory / _WINDOW_FILE).read_text())
        return Window(**values), gzip.decompress((directory / _PROGRAM_FILE).read_bytes()).decode()
    except (OSError, EOFError, ValueError, TypeError) as error:
        raise UserError(
            f"{directory}: the profile is incomplete or damaged ({error}); profile the steps again"
        ) from None


def trace_files(directory: Path) -> list[Path]:
    """Returns the traces of all processes, by their number."""
    found = {int(match[1]): name for name in file_sizes(directory) if (match := _TRACE.fullmatch(name))}
    return [directory / found[process] for process in sorted(found)]


def profiles(workdir: Path) -> list[Path]:
    """Returns the directories of the run's profiles, by their first step."""
    parent = profile_directory(workdir) / "plugins" / "profile"
    if not parent.is_dir():
        return []
    found = [(tuple(map(int, m.groups())), path) for path in parent.iterdir() if (m := _window_name(path))]
    return [path for _, path in sorted(found, key=lambda pair: pair[0])]


def _window_name(path: Path) -> re.Match[str] | None:
    return re.fullmatch(r"steps-(\d+)-(\d+)", path.name)
