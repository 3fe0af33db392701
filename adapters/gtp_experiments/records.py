"""Small files that are whole at any moment: JSON documents, and lines of JSON that are appended."""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gtp_policy.errors import DataError


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a document to a temporary file and renames it: readers see the old or the new one.

    Args:
        path: The file.
        content: What JSON can hold.
    """
    _publish(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """Reads a document.

    Args:
        path: The file.

    Returns:
        Its content; None if there is no such file.

    Raises:
        DataError: If it is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(
            f"{path} is damaged: got {error}, expected JSON. Delete the file and run again."
        ) from error


class Lines:
    """A file of JSON objects, one a line, each with the ``update`` that it belongs to.

    Args:
        path: The file; made by the first `append`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, **content: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
        """Adds a line and syncs it to the disk, so that a checkpoint never lacks its records.

        Args:
            **content: The object, with ``update`` among its keys.
        """
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(content, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """Returns the objects, without a last line that a crash has left unfinished."""
        found: list[dict[str, Any]] = []
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line))
        return found

    def cut_back_(self, update: int) -> None:
        """Drops what was written after an update, as a run that resumes there writes it again.

        Args:
            update: The last one to keep.
        """
        if self.path.exists():
            kept = (line for line in self.read() if line["update"] <= update)
            _publish(self.path, "".join(json.dumps(line) + "\n" for line in kept))


def _publish(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
