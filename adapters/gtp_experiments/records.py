"""Small files that are whole at any moment: JSON documents, and lines of JSON that are appended."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gtp_policy.errors import DataError
from gtp_policy.files import replacing

# A result with a thousand evaluations of a hundred episodes has some 6 million.
_MOST = 2**24


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
        DataError: If it is no JSON, or longer than any that a run writes.
    """
    try:
        return json.loads(_read(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from error


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
        with open(self.path, "a", encoding="utf-8", opener=_open_itself) as file:
            file.write(json.dumps(content, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """Returns the objects, without a last line that a crash has left unfinished.

        Raises:
            DataError: If another line is no object with an ``update``.
        """
        try:
            lines = _read(self.path).splitlines()
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise _damaged(self.path, error) from error
        found: list[dict[str, Any]] = []
        for number, line in enumerate(lines, 1):
            try:
                content = json.loads(line)
                if not isinstance(content, dict) or type(content.get("update")) is not int:
                    raise ValueError(f"no update in line {number}")
                found.append(content)
            except (ValueError, RecursionError) as error:
                if number < len(lines):
                    raise _damaged(self.path, error) from error
        return found

    def cut_back_(self, update: int) -> None:
        """Drops what was written after an update, as a run that resumes there writes it again.

        Args:
            update: The last one to keep.

        Raises:
            DataError: As for `read`.
        """
        if self.path.exists():
            kept = (line for line in self.read() if line["update"] <= update)
            _publish(self.path, "".join(json.dumps(line) + "\n" for line in kept))


def _read(path: Path) -> str:
    with open(path, encoding="utf-8", opener=_open_itself) as file:
        text = file.read(_MOST + 1)
    if len(text) > _MOST:
        raise ValueError(f"more than {_MOST} characters")
    return text


def _open_itself(path: str, flags: int) -> int:
    """Opens a file, and nothing that a link of its name leads to, or that would wait."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} is damaged: got {type(error).__name__} ({error}), expected JSON. Delete the file "
        "and run again."
    )


def _publish(path: Path, text: str) -> None:
    with replacing(path) as temporary, temporary.open("x", encoding="utf-8") as file:
        file.write(text)
