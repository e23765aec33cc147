"""Coverage-guided fuzzing with atheris: `python -m tests.fuzz NAME [-max_total_time=60]`."""

import sys
import tempfile
from pathlib import Path

from configs.errors import UserError
from tests.faults.tiny_run import settings_of, train
from tests.fuzz.targets import NAMES, make_store, targets

try:
    import atheris
except ImportError:
    sys.exit("tests.fuzz needs: pip install atheris (Python 3.11); without it: make fuzz")


def main() -> None:
    """Runs one target until it fails or is stopped; other flags are passed to libFuzzer."""
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        sys.exit(f"usage: python -m tests.fuzz NAME [libFuzzer flags]; NAME: {', '.join(NAMES)}")
    made = Path(tempfile.mkdtemp())
    train(made / "run", settings_of(num_steps=1))
    target = next(t for t in targets(make_store(made), made / "run") if t.name == sys.argv[1])
    corpus = made / "corpus"
    corpus.mkdir()
    (corpus / "valid").write_bytes(target.valid)

    def once(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as directory:
            try:
                target.read(Path(directory), data)
            except UserError as error:
                assert "\n" not in str(error)

    # Instruments the modules that are imported at this point, which include all readers.
    atheris.instrument_all()
    atheris.Setup([sys.argv[0], *sys.argv[2:], str(corpus)], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
