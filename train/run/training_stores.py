"""The token stores that a run was pre-trained on."""

from pathlib import Path

from configs.errors import UserError
from data.storage.paths import at
from data.store import is_store
from train.run.record import Run, open_run


def training_stores(run: Run, option: str) -> list[Path]:
    """Returns the stores to look for questions in: those of a run's pre-training for "auto", else the named one.

    Raises:
        UserError: a store is missing.
    """
    if option != "auto":
        paths = [at(option)]
    else:
        runs = [*(at(entry["directory"]) for entry in run.record.lineage), run.directory]
        records = [(path, open_run(path).record) for path in dict.fromkeys(runs)]
        pretrained = [(path, record.config["data"]["path"]) for path, record in records if record.stage == "pretrain"]
        paths = [at(data) if data and is_store(at(data)) else path / "store" for path, data in pretrained]
    for path in paths:
        if not is_store(path):
            raise UserError(
                f"--contamination={option}: {path} is not a token store; expected the store of the training text, "
                "or auto for a run whose store is still there"
            )
    return paths
