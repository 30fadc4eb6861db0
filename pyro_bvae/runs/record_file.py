"""``data.json`` of a run: the record of its data, from which its model is built without them."""

from __future__ import annotations

import json
from pathlib import Path

from pyro_bvae.core.disk.digests import read_file
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.files import check_text
from pyro_bvae.datasets.record import DataRecord

RECORD = "data.json"


def record_bytes(record: DataRecord) -> bytes:
    """Return the content of the file."""
    return (json.dumps(record.to_dict(), allow_nan=False) + "\n").encode("utf-8")


def read_record(directory: Path) -> DataRecord | None:
    """Return the record of a run; None for a run without one, such as one of version 0.1.0.

    Raises:
        InputError: if the file was changed since the run wrote it, or a newer version wrote it.
    """
    path = directory / RECORD
    if path.exists():
        check_text(path)
    try:
        saved = json.loads(read_file(path))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no JSON: {error}") from error
    if not isinstance(saved, dict):
        raise InputError(f"{path} must hold a JSON object, got {type(saved).__name__}")
    try:
        return DataRecord.from_dict(saved)
    except InputError as error:
        raise InputError(f"{path} cannot be used: {error}") from error
