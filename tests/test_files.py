"""A file is replaced as a whole or not at all, and killed writers leave nothing for long."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gtp_policy import files
from gtp_policy.files import replacing, replacing_together, sweep, target_of, temporary_name


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_the_file_appears_at_the_end_of_the_block_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "scores.json"
    with replacing(path, ".zip") as temporary:
        temporary.write_text("new")
        assert temporary.name.endswith(".zip")
        assert target_of(temporary.name) == path.name
        assert not path.exists()
    assert path.read_text() == "new"
    assert names(path.parent) == ["scores.json"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_block_that_raises_leaves_the_old_file(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "scores.json"
    path.write_text("old")

    def write() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["scores.json"]


def test_a_block_that_writes_nothing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), replacing(path):
        pass
    assert path.read_text() == "old"


def test_what_killed_writers_left_goes_once_it_is_old(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    young, old = temporary_name(path), temporary_name(path)
    foreign = temporary_name(tmp_path / "other.json")
    mine = tmp_path / ".scores.json.tmp-of-mine"  # no name that is given to a temporary file
    for leftover in (young, old, foreign, mine):
        leftover.write_text("half")
    for leftover in (old, foreign, mine):
        os.utime(leftover, (0, 0))
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert set(names(tmp_path)) == {path.name, young.name, foreign.name, mine.name}


def fails_at(monkeypatch: pytest.MonkeyPatch, *calls: int, before: Callable[[], None]) -> None:
    """Lets some calls of `os.replace` fail."""
    count, replace = itertools.count(1), os.replace

    def failing(source: Path, target: Path) -> None:
        if next(count) in calls:
            before()
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", failing)


def two_old_files(folder: Path) -> tuple[Path, Path]:
    paths = folder / "a.zip", folder / "b.txt"
    for path in paths:
        path.write_text(f"old {path.name}")
        os.utime(path, (0, 0))
    return paths


def replace_both(paths: tuple[Path, Path]) -> None:
    with replacing_together(*paths) as names:
        for name in names:
            name.write_text("new")


def test_files_are_put_back_whatever_other_writers_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = two_old_files(tmp_path)
    fails_at(monkeypatch, 2, before=lambda: [*map(sweep, paths)].clear())
    with pytest.raises(KeyboardInterrupt):
        replace_both(paths)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "a.zip": "old a.zip",
        "b.txt": "old b.txt",
    }


def test_what_cannot_be_put_back_stays_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = two_old_files(tmp_path)
    fails_at(monkeypatch, 2, 3, before=lambda: None)
    with pytest.raises(KeyboardInterrupt) as raised:
        replace_both(paths)
    (note,) = raised.value.__notes__
    (kept,) = (path for path in tmp_path.iterdir() if path not in paths)
    assert str(paths[0]) in note
    assert str(kept) in note
    assert kept.read_text() == "old a.zip"
    assert paths[1].read_text() == "old b.txt"
