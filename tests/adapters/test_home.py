"""``~`` in a path is the home directory, at every door; a link is replaced, not written through."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gtp_datasets import (
    convert,
    load_csv,
    load_d4rl_hdf5,
    load_dataset,
    load_lerobot,
    load_npz,
    load_ogbench,
    load_robomimic,
)
from gtp_experiments import RunConfig, RunFolder, list_of_runs, read_results
from gtp_policy import (
    ActionScaler,
    CheckpointFolder,
    FlowMapActor,
    GTPConfig,
    GTPLearner,
    OfflineDataset,
    load_checkpoint,
    save_checkpoint,
)
from gtp_policy.checkpoint import latest_valid, read_metadata, restore_
from gtp_policy.errors import DataError
from gtp_policy.export import (
    export_onnx,
    export_torch,
    from_pretrained,
    read_policy_file,
    save_pretrained,
)
from gtp_policy.files import expanded
from gtp_runtime import Policy
from tests.adapters.test_d4rl import raw, write
from tests.adapters.writers import flat, make_episodes, write_lerobot, write_robomimic

EPISODES = make_episodes()
SCALER = ActionScaler([-1.0, -1.0], [1.0, 1.0])
BOX: dict[str, Any] = {"low": [-1.0, -1.0], "high": [1.0, 1.0]}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory of the test's own, and a working directory beside it."""
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def learner() -> GTPLearner:
    return GTPLearner.build(3, 2, GTPConfig(critic=None))


def dataset() -> OfflineDataset:
    return OfflineDataset.from_episodes(EPISODES, **BOX)


def run_folder(out: str) -> RunFolder:
    return RunFolder(out, RunConfig(dataset="a.hdf5", updates=1), "0" * 64)


WRITERS: dict[str, Callable[[str], object]] = {
    "save_checkpoint": lambda p: save_checkpoint(p + ".zip", learner()),
    "save_checkpoint, a folder": lambda p: save_checkpoint(p, learner()),
    "CheckpointFolder": lambda p: CheckpointFolder(p).save(learner()),
    "export_onnx": lambda p: export_onnx(learner(), p, action_scaler=SCALER),
    "export_torch": lambda p: export_torch(FlowMapActor(3, 2), p, steps=1),
    "save_pretrained": lambda p: save_pretrained(learner(), p, onnx=False),
    "to_memmap": lambda p: dataset().to_memmap(p),
    "convert": lambda p: convert(EPISODES, p, **BOX),
    "RunFolder": run_folder,
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_written_is_in_the_home_directory(name: str, home: Path) -> None:
    WRITERS[name]("~/what")
    assert list(home.iterdir())
    assert not list(Path.cwd().iterdir())


def written(home: Path) -> None:
    """Puts a file for each reader there."""
    save_checkpoint(home / "a.zip", learner())
    CheckpointFolder(home / "runs").save(learner())
    export_onnx(learner(), home / "a.onnx", action_scaler=SCALER)
    save_pretrained(learner(), home / "hub", onnx=False)
    dataset().to_memmap(home / "map")
    np.savez(home / "a.npz", **flat(EPISODES, final=False))
    rows = flat(EPISODES, final=True)
    names = {"obs": "observations", "action": "actions", "reward": "rewards"}
    ogbench = {names[n]: rows[n] for n in names} | {"next_observations": rows["next_obs"]}
    ogbench |= {"masks": 1.0 - rows["terminated"], "terminals": rows["truncated"]}
    np.savez(home / "og.npz", **ogbench)
    (home / "a.csv").write_text("obs,action\n0,0\n1,0\n")
    write(home / "d4rl.hdf5", raw())
    write_robomimic(home / "demo.hdf5", EPISODES)
    write_lerobot(home / "le", EPISODES)


ONE: dict[str, Any] = {"low": -1.0, "high": 1.0, "episode": False}
READERS: dict[str, Callable[[], object]] = {
    "load_checkpoint": lambda: load_checkpoint("~/a.zip"),
    "read_metadata": lambda: read_metadata("~/a.zip"),
    "restore_": lambda: restore_(learner(), "~/a.zip"),
    "latest_valid": lambda: load_checkpoint(latest_valid("~/runs") or ""),
    "export of a checkpoint": lambda: export_onnx("~/a.zip", "b.onnx", action_scaler=SCALER),
    "read_policy_file": lambda: read_policy_file("~/a.onnx"),
    "gtp_runtime": lambda: Policy.load("~/a.onnx"),
    "from_pretrained": lambda: from_pretrained("~/hub"),
    "memmap": lambda: OfflineDataset.memmap("~/map"),
    "load_npz": lambda: load_npz("~/a.npz", **BOX),
    "load_csv": lambda: load_csv("~/a.csv", **ONE),
    "load_d4rl_hdf5": lambda: load_d4rl_hdf5("~/d4rl.hdf5"),
    "load_ogbench": lambda: load_ogbench("~/og.npz"),
    "load_robomimic": lambda: load_robomimic("~/demo.hdf5"),
    "load_lerobot": lambda: load_lerobot("~/le", **BOX),
    "load_dataset": lambda: load_dataset("~/a.csv", **ONE),
    "a path": lambda: load_csv(Path("~/a.csv"), **ONE),
}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("filled")
    written(folder)
    return folder


@pytest.mark.parametrize("name", READERS)
def test_what_is_read_is_in_the_home_directory(name: str, home: Path, filled: Path) -> None:
    shutil.copytree(filled, home, dirs_exist_ok=True)
    READERS[name]()


def test_runs_are_found_in_the_home_directory(home: Path) -> None:
    assert read_results("~/runs") == []
    assert expanded("~/runs") == home / "runs"
    assert "~" not in str(list_of_runs("~"))


@pytest.mark.parametrize("path", [b"a.npz", 3, None, open])
@pytest.mark.parametrize(
    "load",
    [load_csv, load_npz, load_d4rl_hdf5, load_robomimic, load_lerobot],
    ids=lambda load: load.__name__,
)
def test_what_is_no_path_is_a_typed_error(load: Callable[..., object], path: Any) -> None:
    with pytest.raises(DataError, match=r"`path` is no path: got .*name of a file"):
        load(path, low=-1.0, high=1.0)


@pytest.mark.parametrize("name", ["save_checkpoint", "export_onnx"])
def test_a_link_is_replaced_and_what_it_points_to_stays(name: str, home: Path) -> None:
    ending = ".zip" if name == "save_checkpoint" else ""
    link, target = home / f"latest{ending}", home / "run_3"
    target.write_text("precious")
    link.symlink_to(target)
    WRITERS[name]("~/latest")
    assert target.read_text() == "precious"
    assert link.is_file()
    assert not link.is_symlink()
