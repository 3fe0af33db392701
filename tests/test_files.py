"""A file is replaced as a whole or not at all, and killed writers leave nothing for long."""

import os
from pathlib import Path

import pytest

from gtp_policy.files import replacing, target_of, temporary_name


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
