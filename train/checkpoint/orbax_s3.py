"""Orbax on s3://. It supports gs:// only, although its layout and its commit marker suit any bucket.

Four private names of Orbax decide which paths are in a bucket and how TensorStore reaches it. They are replaced here,
after checking that they are what they were in Orbax 0.12.8. Remove this file when Orbax writes to s3:// itself
(github.com/google/orbax, issue 359).
"""

from types import ModuleType

import orbax.checkpoint as ocp

from configs.errors import UserError

_PREFIXES = ("gs://", "s3://")


def support_s3() -> None:
    """Makes Orbax treat s3:// as it treats gs://.

    Raises:
        UserError: this version of Orbax has changed.
    """
    try:
        from orbax.checkpoint._src.path import gcs_utils
        from orbax.checkpoint._src.serialization import tensorstore_utils

        if gcs_utils._GCS_PATH_PREFIX == _PREFIXES:
            return
        known = _is_known(gcs_utils, tensorstore_utils)
    except (ImportError, AttributeError, TypeError) as error:
        raise UserError(_unsupported(str(error))) from None
    if not known:
        raise UserError(_unsupported("its functions for buckets have changed"))
    from data.storage.ranges import kvstore_spec

    normalize = tensorstore_utils._normalize_path
    gcs_utils._GCS_PATH_PREFIX = _PREFIXES
    gcs_utils.get_kvstore_for_gcs = kvstore_spec
    tensorstore_utils._normalize_path = lambda path: normalize(path).replace("s3:/", "s3://")
    tensorstore_utils._use_gcs_driver = lambda directory: directory.startswith(_PREFIXES)


def _is_known(gcs_utils: ModuleType, tensorstore_utils: ModuleType) -> bool:
    """Returns whether the names that are replaced do what they did in Orbax 0.12.8."""
    return (
        gcs_utils._GCS_PATH_PREFIX == ("gs://",)
        and tensorstore_utils.gcs_utils is gcs_utils
        and tensorstore_utils._normalize_path("gs://bucket/name/") == "gs://bucket/name"
        and tensorstore_utils._use_gcs_driver("gs://bucket")
        and not tensorstore_utils._use_gcs_driver("/bucket")
        and gcs_utils.get_kvstore_for_gcs("gs://bucket/name")["path"] == "name"
    )


def _unsupported(reason: str) -> str:
    return (
        f"checkpoints on s3:// need Orbax 0.12.8, and this is {ocp.__version__} ({reason}); expected "
        "--workdir=gs://..., a local directory, or pip install orbax-checkpoint==0.12.8"
    )
