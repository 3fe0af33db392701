"""Checkpoints: exact round trips and resumption, atomic writes, one error for all that is bad."""

import contextlib
import copy
import hashlib
import itertools
import json
import os
import pickle
import shutil
import signal
import struct
import sys
import threading
import warnings
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from gtp_policy import (
    ActionScaler,
    AdvantageWeighter,
    AdvantageWeighterConfig,
    CheckpointFolder,
    ExpectileBaseline,
    FlowMapActorConfig,
    GTPConfig,
    GTPLearner,
    GTPLearnerConfig,
    GTPLoss,
    GTPLossConfig,
    ObservationLayout,
    OfflineDataset,
    QEnsembleConfig,
    StopSignal,
    latest_valid,
    load_checkpoint,
    read_metadata,
    restore_,
    save_checkpoint,
)
from gtp_policy._random import new_stream
from gtp_policy.checkpoint import bundle
from gtp_policy.errors import (
    CheckpointError,
    NonFiniteError,
    StateMismatchError,
    TrainingWarning,
    UnsupportedSpaceError,
)
from gtp_policy.export import model_card
from gtp_policy.files import stored_bytes
from tests.reliability import small
from tests.reliability.mutations import SLACK, peak_memory

SMALL = GTPConfig(
    actor=FlowMapActorConfig(hidden=(16,), time_dim=4, steps=2),
    critic=QEnsembleConfig(hidden=(16,)),
    learner=GTPLearnerConfig(
        total_updates=40, actor_lr=3e-4, ema_rate=0.1, guidance_start=0, seed=7
    ),
)
VARIANTS = {
    "policy baseline": SMALL,
    "cloning": SMALL.replace(critic=None),
    "expectile": SMALL.replace(
        learner=SMALL.learner.replace(
            baseline=ExpectileBaseline(hidden=(8,)), lr_schedule="cosine", max_grad_norm=1.0
        ),
        weighter=AdvantageWeighterConfig(eta=3.0),
        loss=GTPLossConfig(adaptive_power=0.0, huber=0.01, reduction="sum"),
    ),
}


@pytest.fixture
def dataset() -> OfflineDataset:
    rng = np.random.default_rng(0)
    return OfflineDataset.from_arrays(
        obs=rng.normal(3.0, 2.0, (64, 3)),
        action=rng.uniform(-1, 1, (64, 2)),
        reward=rng.normal(size=64),
        terminated=np.arange(64) % 8 == 7,
        truncated=np.zeros(64),
        next_obs=rng.normal(size=(64, 3)),
        low=[-2.0, -1.0],
        high=[2.0, 1.0],
    )


def train(learner: GTPLearner, dataset: OfflineDataset, until: int) -> GTPLearner:
    while learner.updates < until:
        learner.update(dataset.sample(16, generator=learner.stream("batch")))
    return learner


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    """Flattens a state dict to comparable leaves: tensors as (dtype, bytes)."""
    if isinstance(value, dict):
        return {k: v for key, x in value.items() for k, v in leaves(x, f"{name}/{key}").items()}
    if isinstance(value, Tensor):
        return {name: (value.dtype, value.shape, value.contiguous().numpy().tobytes())}
    return {name: value}


def same(a: GTPLearner, b: GTPLearner) -> bool:
    return leaves(a.state_dict()) == leaves(b.state_dict()) and a.full_config == b.full_config


@pytest.fixture(params=["a", "a.zip"], ids=["directory", "zip"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


@pytest.mark.parametrize("name", VARIANTS)
def test_everything_comes_back(dataset: OfflineDataset, path: Path, name: str) -> None:
    learner = train(GTPLearner.from_dataset(dataset, VARIANTS[name]), dataset, 3)
    layout = ObservationLayout.of_dict({"speed": (1,), "camera": (2, 1)})
    metadata = {"task": "toy", "nested": {"list": [1, 2.5, None, True]}}
    save_checkpoint(
        path, learner, action_scaler=dataset.action_scaler, layout=layout, metadata=metadata
    )
    loaded = load_checkpoint(path)
    assert same(loaded.learner, learner)
    assert loaded.action_scaler == dataset.action_scaler
    assert loaded.layout == layout
    assert loaded.metadata == metadata
    info = read_metadata(path)
    assert info.config == learner.open_config
    assert (info.obs_dim, info.action_dim, info.updates) == (3, 2, 3)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("cut", [0, 1, 5, 8])
def test_a_resumed_run_is_the_uninterrupted_one(
    dataset: OfflineDataset, path: Path, name: str, cut: int
) -> None:
    whole = train(GTPLearner.from_dataset(dataset, VARIANTS[name]), dataset, 8)
    part = train(GTPLearner.from_dataset(dataset, VARIANTS[name]), dataset, cut)
    save_checkpoint(path, part)
    assert same(train(load_checkpoint(path).learner, dataset, 8), whole)


def test_threads_that_load_leave_the_warnings_as_they_were(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "a", GTPLearner.build(3, 2, SMALL))
    load_checkpoint(path)  # what is imported then has filters of its own
    born = threading.Barrier(4)
    before, interval = list(warnings.filters), sys.getswitchinterval()
    with ThreadPoolExecutor(4) as threads:
        # All threads are there before they change places that often: in Python 3.11, threads that
        # are born at once may fail to install the trace function with which coverage is measured.
        list(threads.map(lambda _: born.wait(60), range(4)))
        sys.setswitchinterval(1e-5)
        try:
            list(threads.map(lambda _: load_checkpoint(path), range(60)))
        finally:
            sys.setswitchinterval(interval)
    assert list(warnings.filters) == before


def test_restoring_into_an_existing_learner(dataset: OfflineDataset, path: Path) -> None:
    learner = train(GTPLearner.from_dataset(dataset, SMALL), dataset, 2)
    save_checkpoint(path, learner)
    other = train(GTPLearner.from_dataset(dataset, SMALL), dataset, 4)
    restore_(other, path)
    assert same(other, learner)


def test_other_choices_are_named_and_nothing_changes(dataset: OfflineDataset, path: Path) -> None:
    save_checkpoint(path, train(GTPLearner.from_dataset(dataset, SMALL), dataset, 2))
    config = SMALL.replace(learner=SMALL.learner.replace(seed=8, actor_lr=1e-3))
    other = GTPLearner.from_dataset(dataset, config)
    before = leaves(other.state_dict())
    with pytest.raises(StateMismatchError, match=r"actor_lr: 0.0003 there, 0.001 here; .*seed: 7"):
        restore_(other, path)
    assert leaves(other.state_dict()) == before


def test_double_precision_comes_back(path: Path) -> None:
    learner = GTPLearner.build(3, 2, SMALL).double()
    save_checkpoint(path, learner)
    assert same(load_checkpoint(path).learner, learner)


class Backbone(nn.Module):
    """A custom network."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(7, 2)

    def forward(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return self.linear(torch.cat([obs, x, t[:, None], s[:, None]], 1))


class Encoder(nn.Module):
    """A custom encoder."""

    features_dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, obs: Tensor) -> Tensor:
        return self.linear(obs)


@pytest.mark.global_rng
@pytest.mark.parametrize("make", [{"network": Backbone}, {"encoder": Encoder}], ids=str)
def test_modules_of_ones_own_must_be_brought_along(
    dataset: OfflineDataset, path: Path, make: dict[str, Callable[[], nn.Module]]
) -> None:
    modules: dict[str, Any] = {name: cls() for name, cls in make.items()}
    learner = train(GTPLearner.from_dataset(dataset, SMALL, **modules), dataset, 2)
    save_checkpoint(path, learner)
    fresh: dict[str, Any] = {name: cls() for name, cls in make.items()}
    assert same(load_checkpoint(path, **fresh).learner, learner)
    with pytest.raises(StateMismatchError, match=f"with a custom `{next(iter(make))}`"):
        load_checkpoint(path)


def rmsprop(part: str, module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(module.parameters(), lr=1e-3, momentum=0.9)


def test_optimisers_of_ones_own(dataset: OfflineDataset, path: Path) -> None:
    learner = train(GTPLearner.from_dataset(dataset, SMALL, optimizer=rmsprop), dataset, 2)
    save_checkpoint(path, learner)
    resumed = load_checkpoint(path, optimizer=rmsprop).learner
    assert same(resumed, learner)
    assert same(train(resumed, dataset, 4), train(learner, dataset, 4))
    with pytest.raises(CheckpointError, match=r"does not fit the optimiser.*train_state=False"):
        load_checkpoint(path)
    acting = load_checkpoint(path, train_state=False).learner
    obs = torch.zeros(1, 3)
    kept = load_checkpoint(path, optimizer=rmsprop).learner
    assert torch.equal(acting.act(obs, deterministic=True), kept.act(obs, deterministic=True))


def test_an_optimiser_of_ones_own_keeps_its_learning_rate(dataset: OfflineDataset) -> None:
    learner = GTPLearner.from_dataset(dataset, SMALL, optimizer=rmsprop)
    train(learner, dataset, 1)
    assert learner.optimizers["actor"].param_groups[0]["lr"] == 1e-3


def test_a_scheduler_leaves_no_obstacle(dataset: OfflineDataset, path: Path) -> None:
    learner = GTPLearner.from_dataset(dataset, SMALL)
    torch.optim.lr_scheduler.StepLR(learner.optimizers["actor"], 10)
    save_checkpoint(path, train(learner, dataset, 1))
    assert load_checkpoint(path).learner.updates == 1


def adafactor(part: str, module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(module.parameters(), lr=1e-3)  # an option of it is negative


def frozen(learner: GTPLearner) -> None:
    for parameter in list(learner.actor.parameters())[:2]:
        parameter.requires_grad_(False)


def with_one_cycle(learner: GTPLearner) -> None:
    optimizer = learner.optimizers["actor"]
    rate = optimizer.param_groups[0]["lr"]
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, 100)
    optimizer.param_groups[0]["lr"] = rate  # which is the config's


def with_decay(learner: GTPLearner) -> None:
    learner.optimizers["critic"].param_groups[0]["weight_decay"] = 0.1


@pytest.mark.parametrize(
    ("change", "optimizer"),
    [(frozen, None), (with_one_cycle, None), (with_decay, None), (lambda learner: None, adafactor)],
    ids=["frozen layers", "a scheduler's options", "an option", "Adafactor"],
)
def test_what_is_saved_is_loaded(
    dataset: OfflineDataset, path: Path, change: Callable[[GTPLearner], None], optimizer: Any
) -> None:
    learner = GTPLearner.from_dataset(dataset, SMALL, optimizer=optimizer)
    change(learner)
    save_checkpoint(path, train(learner, dataset, 2))
    alike = GTPLearner.from_dataset(dataset, SMALL, optimizer=optimizer)
    change(alike)
    restore_(alike, path)
    assert same(alike, learner)
    assert same(train(alike, dataset, 4), train(learner, dataset, 4))
    assert load_checkpoint(path, optimizer=optimizer).learner.updates == 2


class OwnLoss(GTPLoss):
    """A class that no file can describe."""


class OwnWeighter(AdvantageWeighter):
    """Another one."""


def test_own_classes_are_not_the_packages_in_silence(dataset: OfflineDataset, path: Path) -> None:
    learner = GTPLearner.from_dataset(dataset, SMALL)
    learner.loss, learner.weighter = OwnLoss(SMALL.loss), OwnWeighter(SMALL.weighter)
    save_checkpoint(path, learner)
    said = "with a loss 'OwnLoss' and a weighter 'OwnWeighter', which no file can describe"
    with pytest.warns(TrainingWarning, match=said):
        load_checkpoint(path)
    load_checkpoint(path, train_state=False)  # it acts the same
    alike = GTPLearner.from_dataset(dataset, SMALL)
    alike.loss, alike.weighter = OwnLoss(SMALL.loss), OwnWeighter(SMALL.weighter)
    restore_(alike, path)
    assert same(alike, learner)


def test_critics_of_two_configs_are_not_saved_as_one(dataset: OfflineDataset, path: Path) -> None:
    learner = GTPLearner.from_dataset(dataset, SMALL)
    assert learner.critic is not None
    learner.critic.config = learner.critic.config.replace(reduction="mean")
    with pytest.raises(CheckpointError, match="a target critic of another config"):
        save_checkpoint(path, learner)


def test_what_could_not_be_restored_is_not_saved(dataset: OfflineDataset, tmp_path: Path) -> None:
    learner, folder = GTPLearner.from_dataset(dataset, SMALL), CheckpointFolder(tmp_path, keep=1)
    good = folder.save(train(learner, dataset, 1))
    train(learner, dataset, 2)
    learner.optimizers["actor"].param_groups[0]["amsgrad"] = True  # its state lacks what that needs
    with pytest.raises(CheckpointError, match=r"cannot be saved: got .* optimiser of the actor"):
        folder.save(learner)
    assert folder.latest() == good


def test_a_learner_that_was_never_capped_keeps_its_curriculum(path: Path) -> None:
    built = GTPLearner.build(3, 2, SMALL)
    uncapped = GTPLearner(built.actor, built.critic, config=SMALL.learner)
    save_checkpoint(path, uncapped)
    assert load_checkpoint(path).learner.full_config == uncapped.full_config


def test_equal_content_gives_equal_bytes(dataset: OfflineDataset, tmp_path: Path) -> None:
    learner = train(GTPLearner.from_dataset(dataset, SMALL), dataset, 1)
    first, second = (save_checkpoint(tmp_path / f"{n}.zip", learner) for n in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_a_zip_is_replaced_and_a_directory_is_not(tmp_path: Path) -> None:
    one, two = (GTPLearner.build(3, 2, SMALL.replace(critic=None)) for _ in range(2))
    two.updates = 5
    save_checkpoint(tmp_path / "a.zip", one)
    save_checkpoint(tmp_path / "a.zip", two)
    assert load_checkpoint(tmp_path / "a.zip").learner.updates == 5
    save_checkpoint(tmp_path / "a", one)
    with pytest.raises(CheckpointError, match="exists, expected a new directory"):
        save_checkpoint(tmp_path / "a", two)
    assert load_checkpoint(tmp_path / "a").learner.updates == 0
    assert sorted(os.listdir(tmp_path)) == ["a", "a.zip"]


def test_parent_folders_are_made(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "runs" / "one" / "a", GTPLearner.build(3, 2, SMALL))
    assert path.is_dir()


def test_what_a_checkpoint_says_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_checkpoint(tmp_path / "a", GTPLearner.build(3, 2, SMALL))
    content, opened = bundle.content_id(path), []
    whole = bundle._read_file
    monkeypatch.setattr(bundle, "_read_file", lambda p, n: opened.append(p.name) or whole(p, n))
    assert read_metadata(path).sha256 == content  # of the manifest that was checked
    assert opened == ["manifest.json", "config.json"]


@pytest.mark.parametrize("value", [float("nan"), object(), {1, 2}])
def test_metadata_that_is_no_json_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(CheckpointError, match="expected tensors and JSON"):
        save_checkpoint(tmp_path / "a", GTPLearner.build(3, 2, SMALL), metadata={"x": value})
    assert os.listdir(tmp_path) == []


# What is wrong with a checkpoint, as what is done to a good one.
def truncate(path: Path) -> None:
    weights = path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def flip(path: Path) -> None:
    weights = path / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)


def edit_manifest(path: Path) -> None:
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace("written_by", "Written_by"))


def newer(path: Path) -> None:
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 1', '"format_version": 2'))


def remove_weights(path: Path) -> None:
    (path / "weights.safetensors").unlink()


def link(path: Path) -> None:
    weights = path / "weights.safetensors"
    weights.rename(path.parent / "elsewhere")
    weights.symlink_to(path.parent / "elsewhere")


def pipe(path: Path) -> None:
    (path / "config.json").unlink()
    os.mkfifo(path / "config.json")


def huge_manifest(path: Path) -> None:
    (path / "manifest.json").write_bytes(b" " * 2**20)


def deep_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("[" * 30_000)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "another length"),
        (flip, "SHA-256"),
        (edit_manifest, "SHA-256"),
        (newer, "format version 2, and this release reads version 1"),
        (remove_weights, "no such file"),
        (link, "symbolic links"),
        (pipe, "regular file"),
        (huge_manifest, "longer than it may be"),
        (deep_manifest, "no JSON"),
    ],
)
def test_a_damaged_directory(tmp_path: Path, damage: Callable[[Path], None], reason: str) -> None:
    path = save_checkpoint(tmp_path / "a", GTPLearner.build(3, 2, SMALL))
    damage(path)
    with pytest.raises(CheckpointError, match=rf"{path.name} cannot be read: got .*{reason}"):
        load_checkpoint(path)


def rewrite(path: Path, change: Callable[[dict[str, bytes]], None], **options: Any) -> Path:
    """Writes a zip again with other members."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    target = path.with_name("changed.zip")
    with zipfile.ZipFile(target, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return target


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        (lambda m: None, {"compression": zipfile.ZIP_DEFLATED}, "compressed"),
        (lambda m: m.pop("config.json"), {}, "without config.json"),
        (lambda m: m.update({str(i): b"" for i in range(100)}), {}, "of 104 members"),
        (lambda m: m.update({"manifest.json": b"{}"}), {}, "another kind of file"),
    ],
    ids=["compressed", "missing member", "many members", "other manifest"],
)
def test_a_foreign_zip(
    tmp_path: Path, change: Callable[[dict[str, bytes]], None], options: Any, reason: str
) -> None:
    path = save_checkpoint(tmp_path / "a.zip", GTPLearner.build(3, 2, SMALL))
    with pytest.raises(CheckpointError, match=reason):
        load_checkpoint(rewrite(path, change, **options))


@pytest.mark.parametrize("name", ["/etc/hostname", "../outside.txt", "more.bin"])
def test_no_file_is_opened_that_no_checkpoint_has(tmp_path: Path, name: str) -> None:
    """The length of a file elsewhere would be told by whether the checkpoint loads."""
    path = save_checkpoint(tmp_path / "a", GTPLearner.build(3, 2, SMALL))
    place = path / name
    if not place.exists():
        place.write_bytes(b"12345")
    parts = ("config.json", "weights.safetensors", "train_state.safetensors")
    files = {part: (path / part).read_bytes() for part in parts}
    manifest = bundle._make_manifest({**files, name: place.read_bytes()}, "test")
    (path / "manifest.json").write_bytes(manifest)
    for function in (load_checkpoint, read_metadata):
        with pytest.raises(CheckpointError, match="an entry for"):
            function(path)


def test_a_policy_of_normalised_observations_says_so(path: Path) -> None:
    learner = GTPLearner.build(3, 2, SMALL)
    learner.normalized_by = "VecNormalize"
    save_checkpoint(path, learner)
    assert read_metadata(path).normalized_by == "VecNormalize"
    assert "| observations are normalised by | VecNormalize" in model_card(path)
    with pytest.warns(UserWarning, match="VecNormalize had normalised"):
        assert load_checkpoint(path).learner.normalized_by == "VecNormalize"


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    for name in ("model.pt", "model.zip"):
        (tmp_path / name).write_bytes(pickle.dumps({"a": 1}))
        with pytest.raises(CheckpointError, match="no zip file"):
            load_checkpoint(tmp_path / name)


def test_what_is_not_there(tmp_path: Path) -> None:
    for function in (load_checkpoint, read_metadata):
        with pytest.raises(CheckpointError, match="no such file or directory"):
            function(tmp_path / "nothing")
    for name in ("nothing", "a\0b", "x" * 5_000, "\ud800"):
        with contextlib.suppress(CheckpointError):  # what cannot be listed
            assert latest_valid(name) is None


def reseal(path: Path, name: str, change: Callable[[Any], None]) -> None:
    """Changes a JSON file and makes the manifest agree, as an attacker would."""
    document = json.loads((path / "config.json").read_text())
    change(document)
    files = {
        file: (path / file).read_bytes()
        for file in ("config.json", "weights.safetensors", "train_state.safetensors")
    }
    files["config.json"] = json.dumps(document).encode()
    shutil.rmtree(path)
    bundle.write_bundle(path, files, written_by=name)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d["config"]["actor"].update(hidden=[10**9]), "networks of at least"),
        (lambda d: d["config"]["critic"].update(members=10**9), "less than or equal"),
        (lambda d: d["config"]["critic"].update(members=9_999), "networks of at least"),
        (lambda d: d.update(obs_dim=10**12), "networks of at least"),
        (lambda d: d["config"]["actor"].update(hidden=[8]), "other networks"),
        (lambda d: d.update(updates=-1), "wrong `updates`"),
        (lambda d: d.update(extra=1), "wrong `extra`"),
        (lambda d: d["config"]["weighter"].update(eta="1.0"), "wrong `config.weighter.eta`"),
        (lambda d: d.update(action_box={"low": [0.0], "high": [1.0]}), "do not fit its dimensions"),
        (lambda d: d.update(action_box={"low": [1.0] * 2, "high": [0.0] * 2}), "has no range"),
        (lambda d: d.update(layout={"keys": ["a", "b"], "shapes": [[3]]}), "argument 2 is shorter"),
        (lambda d: d["optimizers"].pop("critic"), "optimisers of another learner"),
        (lambda d: d["optimizers"]["actor"]["groups"][0].update(lr="fast"), "option lr='fast'"),
        (lambda d: d["optimizers"]["actor"]["groups"][0].pop("lr"), "options"),
        (lambda d: d["optimizers"]["actor"]["groups"].clear(), "parameter groups"),
        (
            lambda d: d["optimizers"]["actor"]["numbers"].update({"99": {"step": 1}}),
            "does not fit the optimiser of the actor: got 99",
        ),
        (lambda d: d["optimizers"]["actor"]["numbers"].update({"0": {"step": "x"}}), "instead of"),
    ],
)
def test_a_config_that_was_tampered_with(
    tmp_path: Path, change: Callable[[Any], None], reason: str
) -> None:
    path = save_checkpoint(tmp_path / "a", GTPLearner.build(3, 2, SMALL))
    reseal(path, "someone else", change)
    with pytest.raises(CheckpointError, match=reason):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(layout={"keys": [1] * 300_000, "shapes": []}),
        lambda d: d["config"]["actor"].update(hidden=[0] * 300_000),
        lambda d: d["config"].update({f"a{i}": 0 for i in range(60_000)}),
        lambda d: d.update({f"a{i}": 0 for i in range(30_000)}),
        lambda d: d.update(optimizers={f"a{i}": {} for i in range(30_000)}),
        lambda d: d.update(optimizers={f"a{i}": {} for i in range(10_900)}),
    ],
    ids=["keys", "numbers", "fields", "fewer fields", "optimisers", "fewer optimisers"],
)
def test_a_config_that_is_wrong_throughout_takes_no_more_than_others(
    tmp_path: Path, change: Callable[[Any], None]
) -> None:
    # Pydantic keeps half a kilobyte for each of the errors: 400 MB, and three seconds.
    path = save_checkpoint(tmp_path / "a", GTPLearner.build(3, 2, SMALL))
    reseal(path, "someone else", change)
    size = sum(file.stat().st_size for file in path.iterdir())
    with peak_memory() as peak, pytest.raises(CheckpointError, match="wrong `"):
        load_checkpoint(path)
    assert peak[0] <= 2 * size + SLACK


def test_a_config_of_many_empty_lists_is_not_parsed(tmp_path: Path) -> None:
    learner = GTPLearner.build(3, 2, SMALL)
    path = save_checkpoint(tmp_path / "a", learner, metadata={"pairs": [[1, 2]] * 30_000})
    assert len(read_metadata(path).metadata["pairs"]) == 30_000  # type: ignore[arg-type]

    def forge(document: Any) -> None:
        document["metadata"] = {}
        document["optimizers"]["actor"]["groups"][0]["params"] = [[]] * 200_000

    reseal(path, "someone else", forge)
    for read in (read_metadata, load_checkpoint):
        with pytest.raises(CheckpointError, match="lists and objects, of which 65536 are read"):
            read(path)
    with pytest.raises(CheckpointError, match=r"cannot be saved: .* lists and objects"):
        save_checkpoint(tmp_path / "b", learner, metadata={"lists": [[]] * 70_000})


def test_latest_valid_skips_what_is_damaged(tmp_path: Path) -> None:
    learner = GTPLearner.build(3, 2, SMALL)
    assert latest_valid(tmp_path / "nowhere") is None
    for name, updates in (("c", 1), ("b.zip", 2), ("a", 3), ("d", 4)):
        learner.updates = updates
        save_checkpoint(tmp_path / name, learner)
    (tmp_path / "notes.txt").write_text("not a checkpoint")
    assert latest_valid(tmp_path) == tmp_path / "d"
    flip(tmp_path / "d")
    edit_manifest(tmp_path / "a")
    with pytest.warns(UserWarning, match="It is skipped") as warned:
        assert latest_valid(tmp_path) == tmp_path / "b.zip"
    assert len(warned) == 2


def test_a_folder_keeps_the_newest(tmp_path: Path) -> None:
    folder, learner = CheckpointFolder(tmp_path, keep=2), GTPLearner.build(3, 2, SMALL)
    for updates in (0, 1, 2, 3):
        learner.updates = updates
        folder.save(learner, action_scaler=ActionScaler([-1.0] * 2, [1.0] * 2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000000000002", "step_000000000003"]
    assert folder.latest() == tmp_path / "step_000000000003"
    with pytest.raises(ValueError, match="keep"):
        CheckpointFolder(tmp_path, keep=0)


def test_a_folder_never_removes_what_it_has_just_written(tmp_path: Path) -> None:
    folder, learner = CheckpointFolder(tmp_path, keep=1), GTPLearner.build(3, 2, SMALL)
    learner.updates = 9
    flip(folder.save(learner))
    learner.updates = 5
    path = folder.save(learner)
    assert load_checkpoint(path).learner.updates == 5
    with pytest.warns(UserWarning, match="skipped"):
        assert folder.latest() == path


def test_a_folder_belongs_to_one_run(dataset: OfflineDataset, tmp_path: Path) -> None:
    learner = train(GTPLearner.from_dataset(dataset, SMALL), dataset, 2)
    folder = CheckpointFolder(tmp_path)
    path = folder.save(learner)
    before = path.stat().st_mtime_ns
    assert folder.save(learner) == path
    assert path.stat().st_mtime_ns == before
    other = SMALL.replace(learner=SMALL.learner.replace(seed=1))
    with pytest.raises(CheckpointError, match="belongs to another run"):
        folder.save(train(GTPLearner.from_dataset(dataset, other), dataset, 2))
    flip(path)
    folder.save(learner)
    assert same(load_checkpoint(path).learner, learner)


def test_what_an_aborted_write_left_is_removed(tmp_path: Path) -> None:
    leftover = tmp_path / ".step_000000000001.tmp-0123456789abcdef"
    leftover.mkdir()
    (leftover / "weights.safetensors").write_bytes(b"half")
    assert latest_valid(tmp_path) is None
    mine = [
        tmp_path / f".step_{name}" for name in ("000000000001.tmp-of-mine", "notes.tmp-" + 16 * "0")
    ]
    for path in mine:
        path.mkdir()
    new = CheckpointFolder(tmp_path).save(GTPLearner.build(3, 2, SMALL))
    assert set(tmp_path.iterdir()) == {new, *mine}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_becomes_a_flag(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop
        signal.raise_signal(number)
        assert stop
    assert signal.getsignal(number) is before


def test_a_second_signal_interrupts() -> None:
    # As in the foreground: a job that a shell starts in the background ignores Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopSignal() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


GOLDEN = sorted((Path(__file__).parent / "golden").glob("format_*.zip"))


def test_there_is_a_golden_file_of_every_format() -> None:
    from gtp_policy.checkpoint.bundle import FORMAT_VERSION

    assert [p.stem for p in GOLDEN] == [f"format_{i}" for i in range(1, FORMAT_VERSION + 1)]


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda p: p.stem)
def test_golden_files_still_answer_alike(golden: Path) -> None:
    expected = json.loads(golden.with_suffix(".json").read_text("utf-8"))
    learner, scaler, layout, _ = load_checkpoint(golden)
    obs = torch.linspace(-2.0, 2.0, 21).reshape(7, 3)
    # A deterministic action started from the actor's own noise then, and from seven others.
    actor, critic = learner.target_actor, learner.target_critic
    assert critic is not None
    more = torch.randn(7, 2, generator=new_stream(0, "fixed candidates"))
    noise = torch.cat([actor.fixed_noise[None], more])
    tiled = obs.repeat_interleave(8, 0)
    action = actor.sample(tiled, noise=noise.repeat(7, 1))
    best = critic(tiled, action).amin(0).view(7, 8).argmax(1)
    action = action.view(7, 8, 2)
    for name, found in (("one", action[:, 0]), ("best_of_8", action[torch.arange(7), best])):
        torch.testing.assert_close(found, torch.tensor(expected[name]), rtol=0, atol=1e-6)
    assert learner.updates == expected["updates"] == 5
    assert scaler == ActionScaler([-2.0, 0.0], [2.0, 1.0])
    assert layout == ObservationLayout({"position": (2,), "speed": (1,)})


# --- saving knows what loading refuses


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "metadata",
    [
        {"note": "x" * 2**20},
        {"note": nested(500)},
        {"note": "\ud800"},
        {"spaces": {str(i): list(range(100)) for i in range(2000)}},
    ],
    ids=["long", "deep", "surrogate", "many numbers"],
)
def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path, metadata: Any) -> None:
    learner, folder = GTPLearner.build(3, 2, SMALL), CheckpointFolder(tmp_path / "run", keep=1)
    good = folder.save(learner)
    zipped = save_checkpoint(tmp_path / "policy.zip", learner)
    before = zipped.read_bytes()
    learner.updates = 1
    for save in (
        lambda: folder.save(learner, metadata=metadata),
        lambda: save_checkpoint(zipped, learner, metadata=metadata),
    ):
        with pytest.raises(CheckpointError, match=r"cannot be saved: got .*, expected"):
            save()
    assert folder.latest() == good
    assert zipped.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["policy.zip", "run"]


def test_bounds_that_are_one_number_in_float32_are_refused() -> None:
    with pytest.raises(UnsupportedSpaceError, match="no range"):
        ActionScaler([1.0], [1.0 + 1e-12])


def test_retention_counts_only_what_loads(tmp_path: Path) -> None:
    folder, learner = CheckpointFolder(tmp_path, keep=2), GTPLearner.build(3, 2, SMALL)
    for updates in (1, 2, 3):
        learner.updates = updates
        path = folder.save(learner)
        if updates == 2:
            flip(path)
    assert sorted(p.name[-1] for p in tmp_path.iterdir()) == ["1", "2", "3"]
    learner.updates = 4
    folder.save(learner)  # now two others load, and what is older goes
    assert sorted(p.name[-1] for p in tmp_path.iterdir()) == ["3", "4"]


def test_retention_leaves_what_is_not_of_the_run(tmp_path: Path) -> None:
    learner = GTPLearner.build(3, 2, SMALL)
    other = GTPLearner.build(3, 2, SMALL.replace(learner=SMALL.learner.replace(seed=1)))
    folder = CheckpointFolder(tmp_path, keep=1)
    notes = tmp_path / "step_000000000001" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    learner.updates = 2
    newer(folder.save(learner))  # which a later version has written
    learner.updates = 3
    edit_manifest(folder.save(learner))
    other.updates = 4
    folder.save(other)
    for learner.updates in (5, 6):
        folder.save(learner)
    assert sorted(p.name[-1] for p in tmp_path.iterdir()) == ["1", "2", "3", "4", "6"]
    assert notes.read_text() == "mine"


def test_a_run_on_other_data_is_another_one(tmp_path: Path) -> None:
    learner, folder = GTPLearner.build(3, 2, SMALL), CheckpointFolder(tmp_path, keep=1)
    learner.updates = 1
    kept = folder.save(learner)
    learner.set_observation_statistics_(torch.ones(3), torch.ones(3))
    for learner.updates in (2, 3):
        path = folder.save(learner)
    assert {*tmp_path.iterdir()} == {kept, path}


@pytest.mark.filterwarnings("ignore:The curriculum is too fine")
def test_a_run_that_becomes_longer_is_still_the_same(tmp_path: Path) -> None:
    learner, folder = GTPLearner.build(3, 2, SMALL), CheckpointFolder(tmp_path, keep=1)
    for learner.updates, length in ((1, 40), (2, 80), (3, 20_000)):
        learner.set_total_updates_(length)
        path = folder.save(learner)
    assert list(tmp_path.iterdir()) == [path]


def no_checkpoint(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()
    (path / "notes.txt").write_text("mine")


def link_to_nothing(path: Path) -> None:
    path.rename(path.parent / "elsewhere")
    path.symlink_to("nowhere")


def of_another_run(path: Path) -> None:
    shutil.rmtree(path)
    save_checkpoint(path, GTPLearner.build(3, 2, SMALL.replace(critic=None)))
    flip(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (newer, "format version 2"),
        (edit_manifest, "manifest.json is damaged"),
        (no_checkpoint, "no such file"),
        (link_to_nothing, "no such file"),
        (of_another_run, "belongs to another run: got other choices"),
    ],
)
def test_what_is_not_certainly_of_the_run_is_not_replaced(
    tmp_path: Path, change: Callable[[Path], None], reason: str
) -> None:
    learner, folder = GTPLearner.build(3, 2, SMALL), CheckpointFolder(tmp_path)
    path = folder.save(learner)
    change(path)
    before = {p: p.is_file() and p.read_bytes() for p in tmp_path.rglob("*")}
    with pytest.raises(CheckpointError, match=rf"(?s){reason}.*stays as it is: move it away"):
        folder.save(learner)
    assert {p: p.is_file() and p.read_bytes() for p in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("call", ["write", "rename"])
def test_a_damaged_checkpoint_goes_once_its_successor_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    learner, folder = GTPLearner.build(3, 2, SMALL), CheckpointFolder(tmp_path)
    path = folder.save(learner)
    flip(path)
    before = (path / "weights.safetensors").read_bytes()
    genuine, calls = getattr(os, call), itertools.count(1)

    def full(*args: Any) -> Any:
        if call == "write" or next(calls) == 2:  # once the damaged one is out of the way
            raise OSError(28, "No space left on device")
        return genuine(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(CheckpointError, match="no space left"):
            folder.save(learner)
    assert (path / "weights.safetensors").read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    folder.save(learner)
    assert same(load_checkpoint(path).learner, learner)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("known", [True, False])  # files of before say nothing of statistics
def test_a_checkpoint_that_cannot_be_read_is_not_taken_for_the_runs(
    tmp_path: Path, known: bool
) -> None:
    mine, theirs = (GTPLearner.build(3, 2, SMALL) for _ in range(2))
    mine.set_observation_statistics_(torch.ones(3), torch.ones(3))
    folder = CheckpointFolder(tmp_path, keep=1)
    path = folder.save(theirs)
    if not known:
        reseal(path, "test", lambda document: document.pop("statistics"))
    flip(path)
    mine.updates = 1
    folder.save(mine)
    assert path.exists()
    mine.updates = 0
    with pytest.raises(CheckpointError, match="another run"):
        folder.save(mine)
    theirs.updates = 2
    newest = folder.save(theirs)
    names = {newest.name, "step_000000000001", *([] if known else [path.name])}
    assert {p.name for p in tmp_path.iterdir()} == names


def test_a_checkpoint_outlives_a_disk_that_neither_reads_nor_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, folder = GTPLearner.build(3, 2, SMALL), CheckpointFolder(tmp_path)
    path = folder.save(learner)
    with monkeypatch.context() as patch:
        patch.setattr(bundle, "_read_file", mock.Mock(side_effect=OSError(5, "Input/output error")))
        with pytest.raises(CheckpointError, match=r"input/output error.*stays as it is"):
            folder.save(learner)
    assert folder.latest() == path


# --- the folder beside a writer


def test_a_reader_beside_a_writer_always_finds_one(tmp_path: Path) -> None:
    """The writer comes between the reader's list and its look at what it lists."""
    folder, learner = CheckpointFolder(tmp_path, keep=1), GTPLearner.build(3, 2, SMALL)
    folder.save(learner)
    genuine, comes = os.listdir, iter(range(1, 4))

    def listdir(path: Any) -> list[str]:
        names = genuine(path)
        if (updates := next(comes, None)) is not None:
            learner.updates = updates
            folder.save(learner)
        return names

    with mock.patch.object(os, "listdir", listdir), warnings.catch_warnings():
        warnings.simplefilter("error")  # what is gone is nothing to warn of
        assert CheckpointFolder(tmp_path).latest() == tmp_path / "step_000000000003"


def test_an_entry_that_cannot_be_read_is_skipped(tmp_path: Path) -> None:
    path = CheckpointFolder(tmp_path).save(GTPLearner.build(3, 2, SMALL))
    (tmp_path / "locked").mkdir()
    genuine = os.lstat

    def lstat(place: Any, *args: Any, **kwargs: Any) -> os.stat_result:
        if "locked" in str(place) and str(place).endswith("manifest.json"):
            raise PermissionError(13, "Permission denied", str(place))
        return genuine(place, *args, **kwargs)

    with mock.patch.object(os, "lstat", lstat):
        with pytest.warns(UserWarning, match=r"locked cannot be read: got permission denied"):
            assert latest_valid(tmp_path) == path
        assert CheckpointFolder(tmp_path).latest() == path  # which is not even looked at
    with mock.patch.object(os, "listdir", side_effect=PermissionError(13, "Permission denied")):
        with pytest.raises(CheckpointError, match="cannot be listed"):
            latest_valid(tmp_path)


def test_a_folder_knows_its_own(tmp_path: Path) -> None:
    folder, learner = CheckpointFolder(tmp_path), GTPLearner.build(3, 2, SMALL)
    own = folder.save(learner)
    learner.updates = 10**6
    stray = save_checkpoint(tmp_path / "stray.zip", learner)
    save_checkpoint(tmp_path / "step_000000000007", learner)  # says another number than its name
    assert folder.latest() == own
    assert latest_valid(tmp_path) in (stray, tmp_path / "step_000000000007")


def test_a_zip_that_an_aborted_write_left_is_removed_later(tmp_path: Path) -> None:
    old, new = (tmp_path / f".policy.zip.tmp-{x * 16}" for x in "ab")
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    save_checkpoint(tmp_path / "policy.zip", GTPLearner.build(3, 2, SMALL))
    assert not old.exists()
    assert new.exists()  # another process may be at work on it


def test_a_signal_reaches_every_loop_that_has_asked() -> None:
    with StopSignal() as outer:
        with StopSignal() as inner:
            signal.raise_signal(signal.SIGTERM)
            assert inner
        assert outer


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            signal.raise_signal(signal.SIGINT)
            assert not stop
    finally:
        signal.signal(signal.SIGINT, before)


# --- files that contradict themselves


@pytest.mark.parametrize("name", ["a", "a.zip"])
def test_a_manifest_that_promises_more_than_there_is(tmp_path: Path, name: str) -> None:
    # Only the length of the weights is looked at: by it goes what hosts build from the choices.
    path = save_checkpoint(tmp_path / name, GTPLearner.build(3, 2, SMALL))

    def promise(files: dict[str, bytes]) -> None:
        manifest = json.loads(files["manifest.json"])
        del manifest["sha256"]
        manifest["files"]["weights.safetensors"]["bytes"] = 2**40
        digest = hashlib.sha256(bundle._canonical(manifest)).hexdigest()
        files["manifest.json"] = bundle._canonical({**manifest, "sha256": digest})

    if path.is_dir():
        files = {file.name: file.read_bytes() for file in path.iterdir()}
        promise(files)
        (path / "manifest.json").write_bytes(files["manifest.json"])
    else:
        path = rewrite(path, promise)
    for door in (read_metadata, load_checkpoint):
        with pytest.raises(CheckpointError, match=r"weights\.safetensors has another length"):
            door(path)


def tamper(path: Path, change: Callable[[dict[str, Tensor], dict[str, Tensor], Any], None]) -> None:
    files = {f: (path / f).read_bytes() for f in ("weights.safetensors", "train_state.safetensors")}
    weights, moments = map(safetensors.torch.load, files.values())
    document = json.loads((path / "config.json").read_text())
    change(weights, moments, document)
    shutil.rmtree(path)
    contents = (
        json.dumps(document).encode(),
        safetensors.torch.save(weights),
        safetensors.torch.save(moments),
    )
    names = ("config.json", *files)
    bundle.write_bundle(path, dict(zip(names, contents, strict=True)), written_by="someone else")


def without_parameter(weights: Any, moments: dict[str, Tensor], document: Any) -> None:
    for name in [name for name in moments if name.startswith("actor/0/")]:
        del moments[name]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda w, m, d: d.update(updates=123456), "5 steps where 123456 were taken"),
        (lambda w, m, d: m["actor/0/step"].fill_(9), "9 steps where 5 were taken"),
        (lambda w, m, d: m["actor/0/step"].fill_(1.5), "no counts"),
        (lambda w, m, d: [m.pop(n) for n in list(m)], "0 steps where 5 were taken"),
        (without_parameter, "state of 3 parameters instead of 4"),
        (lambda w, m, d: m["critic/0/exp_avg_sq"].neg_(), "negative mean of squares"),
        (lambda w, m, d: m["critic/0/exp_avg"].fill_(torch.nan), "exp_avg with NaN"),
        (lambda w, m, d: w["actor.network.mlp.0.weight"].fill_(torch.nan), "weight with NaN"),
        (lambda w, m, d: w["target_critic.weights.0"].fill_(torch.inf), "NaN or infinity"),
        (lambda w, m, d: w["actor.normalizer.scale"].zero_(), "scale that is not positive"),
        (lambda w, m, d: w["critic.normalizer.mean"].fill_(torch.nan), "mean with NaN"),
        (lambda w, m, d: d["optimizers"]["actor"]["groups"][0].update(lr=-1.0), "out of range"),
        (lambda w, m, d: d["optimizers"]["actor"]["groups"][0].update(betas=[5.0, 7.0]), "betas"),
        (
            lambda w, m, d: d["config"]["actor"].update(
                action_statistics={"mean": [0.0] * 9, "std": [1.0] * 9}
            ),
            "action statistics do not fit",
        ),
        (lambda w, m, d: w.update({k: v.byte() for k, v in w.items()}), "other networks"),
    ],
)
def test_a_file_that_contradicts_itself(
    dataset: OfflineDataset, tmp_path: Path, change: Any, reason: str
) -> None:
    path = tmp_path / "a"
    learner = train(GTPLearner.from_dataset(dataset, SMALL), dataset, 5)
    before = copy.deepcopy(small.flat_state(learner))
    save_checkpoint(path, learner)
    tamper(path, change)
    for load in (load_checkpoint, lambda path: restore_(learner, path)):
        with pytest.raises((CheckpointError, StateMismatchError), match=reason):
            load(path)
    assert not small.differences(before, small.flat_state(learner))


def test_optimisers_that_began_later_are_no_contradiction(
    dataset: OfflineDataset, path: Path
) -> None:
    learner = train(GTPLearner.from_dataset(dataset, SMALL), dataset, 5)
    save_checkpoint(path, learner)
    later = load_checkpoint(path, train_state=False).learner
    for updates in (5, 7):
        again = path.with_name(f"again{updates}")
        loaded = load_checkpoint(save_checkpoint(again, later)).learner
        assert same(loaded, later)
        later = train(loaded, dataset, 2)


def test_a_network_that_diverged_is_not_saved(tmp_path: Path) -> None:
    learner, folder = GTPLearner.build(3, 2, SMALL), CheckpointFolder(tmp_path, keep=1)
    good = folder.save(learner)
    learner.updates = 1
    learner.actor.network.mlp[0].weight.data[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="diverged"):
        folder.save(learner)
    assert folder.latest() == good


# --- bombs


def test_a_second_table_of_contents_is_not_read(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "a.zip", GTPLearner.build(3, 2, SMALL))
    data = path.read_bytes()
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 1)
    path.write_bytes(data[:-22] + locator + data[-22:])
    with pytest.raises(CheckpointError, match="second table of contents"):
        load_checkpoint(path)
    path.write_bytes(data[:-2] + b"\x01\x00")  # a comment of one byte
    with pytest.raises(CheckpointError, match="second table of contents"):
        load_checkpoint(path)


def test_a_zip_of_more_than_two_gibibytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Python writes wide numbers beyond this limit, which is two gibibytes.
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    path = save_checkpoint(tmp_path / "a.zip", GTPLearner.build(3, 2, SMALL))
    data = path.read_bytes()
    assert data[-98:-94] == b"PK\x06\x06"
    assert load_checkpoint(path).learner.updates == 0
    # Of the wide end: its rest, disks, members here and in all, length and begin of the table; of
    # the locator: disk, place, disks; of the narrow end: members, length and begin.
    for place in (-94, -82, -78, -74, -66, -58, -50, -38, -34, -26, -12, -10, -6):
        changed = bytearray(data)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match="second table of contents"):
            load_checkpoint(path)
    path.write_bytes(data[:-98] + b"stuff" + data[-98:])  # the locator says where it was before
    with pytest.raises(CheckpointError, match="second table of contents"):
        load_checkpoint(path)


@pytest.mark.parametrize("name", ["weights.safetensors", "train_state.safetensors"])
def test_many_tensors_without_numbers_are_not_made(tmp_path: Path, name: str) -> None:
    save_checkpoint(tmp_path / "a", GTPLearner.build(3, 2, SMALL))
    names = [p.name for p in (tmp_path / "a").iterdir() if p.name != "manifest.json"]
    files = {n: (tmp_path / "a" / n).read_bytes() for n in names}
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({str(i): empty for i in range(100_000)}).encode()
    files[name] = len(header).to_bytes(8, "little") + header + bytes(2**20)
    bundle.write_bundle(tmp_path / "b", files, written_by="someone else")
    del header
    size = sum(map(len, files.values()))
    with peak_memory() as peak, pytest.raises(CheckpointError, match="bytes of names and shapes"):
        load_checkpoint(tmp_path / "b")
    assert peak[0] < 2 * size + SLACK


@pytest.mark.parametrize("name", ["weights.safetensors", "train_state.safetensors"])
def test_a_large_file_is_no_reason_to_make_many_tensors(tmp_path: Path, name: str) -> None:
    save_checkpoint(tmp_path / "a", GTPLearner.build(3, 2, SMALL))
    names = [p.name for p in (tmp_path / "a").iterdir() if p.name != "manifest.json"]
    files = {n: (tmp_path / "a" / n).read_bytes() for n in names}
    size = 16 * 2**20
    header = {
        f"{i:x}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(20_000)
    }
    header["all"] = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    text = json.dumps(header, separators=(",", ":")).encode()
    files[name] = len(text).to_bytes(8, "little") + text + bytes(size)
    bundle.write_bundle(tmp_path / "b", files, written_by="someone else")
    with pytest.raises(CheckpointError, match="20001 tensors, of which 10000 are read"):
        load_checkpoint(tmp_path / "b")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c["actor"].update(hidden=[1] * 8_000), "config.actor.hidden.*at most 128"),
        (lambda c: c["critic"].update(hidden=[1] * 8_000), "config.critic.hidden.*at most 128"),
        (lambda c: c.update(encoder=tower(400)), "at most 300 layers"),
        (lambda c: c.update(encoder=tower(1)), "networks of at least"),
    ],
    ids=["actor", "critic", "images", "one image"],
)
def test_no_layer_is_made_of_networks_that_the_file_cannot_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, reason: str
) -> None:
    # A hundred thousand of them, without numbers, took half a minute and as many kilobytes.
    path = save_checkpoint(tmp_path / "a", GTPLearner.build(1, 2, SMALL))

    def forge(document: Any) -> None:
        change(document["config"])
        encoder = document["config"]["encoder"]
        document["obs_dim"] = len(encoder["parts"]) if encoder else 1

    reseal(path, "someone else", forge)
    for layer in (nn.Linear, nn.Conv2d):
        monkeypatch.setattr(layer, "__init__", lambda *args, **options: pytest.fail("a layer"))
    for read in (read_metadata, load_checkpoint):
        with pytest.raises(CheckpointError, match=reason):
            read(path)


def tower(images: int) -> dict[str, Any]:
    part = {"shape": [1, 1, 1], "image": True}
    return {"channels": [1] * 8, "blocks": 16, "features": 1, "parts": [part] * images}


def test_holes_are_not_read(tmp_path: Path) -> None:
    size = 100 * 2**20
    path = tmp_path / "a"
    path.mkdir()
    with open(path / "weights.safetensors", "wb") as file:
        file.truncate(size)
    if stored_bytes(os.open(path / "weights.safetensors", os.O_RDONLY)) > size // 2:
        pytest.skip("this file system stores holes")
    with pytest.raises(ValueError, match="hole"):
        bundle._read_file(path / "weights.safetensors", size)
