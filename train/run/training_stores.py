"""The token stores that a run was pre-trained on."""

from pathlib import Path

from configs.errors import UserError
from data.storage.paths import at
from data.store import is_store
from train.corpus.stores import existing_stores
from train.run.length import TASK_TEXT_DIR
from train.run.record import Run, open_run
from train.settings import from_config

_EXPECTED = "expected the store of the training text, or auto for a run whose store is still there"


def training_stores(run: Run, option: str) -> list[Path]:
    """Returns the stores to look for questions in: those of a run's pre-training for "auto", else the named one.

    Raises:
        UserError: a store is missing.
    """
    if option != "auto":
        paths = [at(option)]
    else:
        runs = [*(at(entry["directory"]) for entry in run.record.lineage), run.directory]
        records = [(path, open_run(path).record) for path in dict.fromkeys(runs) if path.name != TASK_TEXT_DIR]
        pretrained = [(path, from_config(record.config)) for path, record in records if record.stage == "pretrain"]
        try:
            paths = [store for path, settings in pretrained for store in existing_stores(settings, path).values()]
        except UserError as error:
            raise UserError(f"--contamination=auto: {error}".partition("; expected")[0] + f"; {_EXPECTED}") from None
    for path in paths:
        if not is_store(path):
            raise UserError(f"--contamination={option}: {path} is not a token store; {_EXPECTED}")
    return paths
