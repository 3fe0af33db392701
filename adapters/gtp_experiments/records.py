"""Small files that are whole at any moment: JSON documents, and lines of JSON that are appended."""

import contextlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from gtp_policy.errors import DataError
from gtp_policy.files import check_holes, replacing
from gtp_policy.records import decode

# A record may be as long as its run, but a run writes no holes: they take no place on the disk.
_MOST_HOLES = 2**24


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a document to a temporary file and renames it: readers see the old or the new one.

    Args:
        path: The file.
        content: What JSON can hold.
    """
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    with replacing(path) as temporary, temporary.open("x", encoding="utf-8") as file:
        file.write(text)


def read_json(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """Reads a document.

    Args:
        path: The file.

    Returns:
        Its content; None if there is no such file.

    Raises:
        DataError: If it is no JSON, no plain file, one that is a hole, or more than is written.
    """
    try:
        with _opened(path) as file:
            return decode(file.read())
    except (FileNotFoundError, NotADirectoryError):
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

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields the objects, without a last line that a crash has left unfinished.

        One line at a time is in memory: a file is as long as its run.

        Raises:
            DataError: If another line is no object with an ``update``.
        """
        wrong: Exception | None = None
        try:
            with _opened(self.path) as file:
                for number, line in enumerate(file, 1):
                    if wrong is not None:
                        raise wrong  # it is not the last
                    try:
                        content = decode(line)
                    except (json.JSONDecodeError, RecursionError) as error:
                        wrong = error
                        continue
                    if isinstance(content, dict) and type(content.get("update")) is int:
                        yield content
                    else:
                        wrong = ValueError(f"no update in line {number}")
        except FileNotFoundError:
            return
        except (OSError, ValueError, RecursionError) as error:
            raise _damaged(self.path, error) from error

    def read(self) -> list[dict[str, Any]]:
        """Returns all objects.

        Raises:
            DataError: As for an iteration.
        """
        return list(self)

    def cut_back_(self, update: int) -> None:
        """Drops what was written after an update, as a run that resumes there writes it again.

        Args:
            update: The last one to keep.

        Raises:
            DataError: As for `read`.
        """
        if self.path.exists():
            with (
                replacing(self.path) as temporary,
                temporary.open("x", encoding="utf-8") as file,
            ):
                for line in self:
                    if line["update"] <= update:
                        file.write(json.dumps(line) + "\n")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    with open(path, encoding="utf-8", opener=_open_itself) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("something that is no plain file")
        check_holes(file, _MOST_HOLES)
        yield file


def _open_itself(path: str, flags: int) -> int:
    """Opens a file, and nothing that a link of its name leads to, or that would wait."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} is damaged: got {type(error).__name__} ({error}), expected JSON as a run "
        "writes it. Delete the file and run again."
    )
