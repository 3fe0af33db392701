"""C5: every argument of the public entry points in turn replaced by what does not belong there."""

import contextlib
import copy
import functools
import io
import itertools
import linecache
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box
from pydantic import ValidationError
from torch import nn

import gtp_sb3
import gtp_tianshou
from gtp_datasets import load_d4rl_hdf5, load_minari, load_ogbench
from gtp_experiments import RunConfig, load_data, read_result, read_results
from gtp_policy import (
    ActionScaler,
    AdvantageWeighter,
    CheckpointFolder,
    FlowMapActor,
    GTPLearner,
    GTPLoss,
    MultiSeedLearner,
    ObservationLayout,
    OfflineDataset,
    QEnsemble,
    act,
    latest_valid,
    load_checkpoint,
    presets,
    read_metadata,
    restore_,
    save_checkpoint,
)
from gtp_policy.actor import ActionStatistics
from gtp_policy.errors import GTPError
from gtp_policy.rewards import LinearReward
from tests.reliability.bad_data import arrays
from tests.reliability.outcome import Outcome
from tests.reliability.small import ACT, OBS, ROOT, make_config

OURS = (str(ROOT / "gtp_policy"), str(ROOT / "adapters"))
HOSTS = ("/stable_baselines3/", "/tianshou/")
ROWS = 4


class Entry(NamedTuple):
    """A call that works, as a function of its named arguments.

    Attributes:
        call: The function or method.
        arguments: Arguments with which it works.
    """

    call: Callable[..., Any]
    arguments: dict[str, Any]


def values() -> dict[str, Any]:
    """Returns what somebody may pass by mistake, or with bad intentions."""
    nan = float("nan")
    return {
        **{repr(x): x for x in (None, True, 0, -1, 2**70, 1.5, -0.0, nan, float("inf"), 1e300)},
        **{
            repr(x): x for x in ("", "x", "\0", "cuda:99", b"x", [], (), [1], [[1.0]], {}, {"a": 1})
        },
        **{"object": object(), "class": int, "function": lambda *_: None, "path": Path("nowhere")},
        "list of NaN": [nan] * OBS,
        "ragged": [[1.0], [1.0, 2.0]],
        "array ()": np.zeros(()),
        "array (0,)": np.zeros(0),
        "array (0, 3)": np.zeros((0, OBS), np.float32),
        "array (4, 3) of float64": np.zeros((ROWS, OBS)),
        "array (4, 3) of int8": np.zeros((ROWS, OBS), np.int8),
        "array of objects": np.array([object(), None]),
        "array of text": np.array(["a", "b"]),
        "array of complex numbers": np.zeros((ROWS, OBS), complex),
        "array of times": np.zeros(ROWS, "M8[s]"),
        "masked array": np.ma.masked_equal(np.zeros((ROWS, OBS)), 0),
        "record": np.zeros(ROWS, [("a", "f4")]),
        "tensor ()": torch.zeros(()),
        "tensor (0,)": torch.zeros(0),
        "tensor (0, 3)": torch.zeros(0, OBS),
        "tensor (4, 3)": torch.zeros(ROWS, OBS),
        "tensor (4, 3) of NaN": torch.full((ROWS, OBS), nan),
        "tensor (4, 2)": torch.zeros(ROWS, ACT),
        "tensor (4, 2) of infinity": torch.full((ROWS, ACT), float("inf")),
        "tensor (4,) of NaN": torch.full((ROWS,), nan),
        "tensor (4, 1)": torch.zeros(ROWS, 1),
        "tensor (2, 4, 3)": torch.zeros(2, ROWS, OBS),
        "tensor of float64": torch.zeros(ROWS, OBS, dtype=torch.float64),
        "tensor of integers": torch.zeros(ROWS, OBS, dtype=torch.int64),
        "tensor of flags": torch.zeros(ROWS, dtype=torch.bool),
        "tensor of complex numbers": torch.zeros(ROWS, OBS, dtype=torch.complex64),
        "tensor of bfloat16": torch.zeros(ROWS, OBS, dtype=torch.bfloat16),
        "sparse tensor": torch.zeros(ROWS, OBS).to_sparse(),
        "tensor on meta": torch.zeros(ROWS, OBS, device="meta"),
        "parameter": nn.Parameter(torch.zeros(ROWS, OBS)),
        "module": nn.Linear(OBS, ACT),
        "generator of NumPy": np.random.default_rng(0),
        "space": Box(-1, 1, (5, 5)),
    }


def entries(directory: Path) -> dict[str, Entry]:
    """Returns the entry points by name, each with arguments that work."""
    config = make_config(20)
    dataset = OfflineDataset.from_arrays(**arrays(32))
    both = dataset.with_next_actions()
    batch = both.sample(ROWS, generator=torch.Generator().manual_seed(0))
    learner = GTPLearner.from_dataset(dataset, config)
    obs, action, t = batch.obs, batch.action, torch.full((ROWS,), 0.5)
    path = save_checkpoint(directory / "good.zip", learner)
    generator = torch.Generator()
    scaler, layout = ActionScaler([-1.0] * ACT, [1.0] * ACT), ObservationLayout((OBS,))
    box = Box(-1.0, 1.0, (ACT,))
    model = gtp_sb3.GTP("MlpPolicy", None, dataset=dataset, gtp_config=config, batch_size=8)
    host = gtp_tianshou.GTP.from_buffer(dataset, action_space=box, config=config)
    actor = FlowMapActor(OBS, ACT, config.actor)
    critic = QEnsemble(OBS, ACT, config.critic)
    names = batch._fields
    rows = {"obs": obs, "action": action}
    plain = arrays(32) | {"gamma": 0.9, "out_of_bounds": "clip", "device": "cpu"}

    def fresh() -> GTPLearner:
        return copy.deepcopy(learner)

    def updated(**fields: Any) -> Any:
        return fresh().update(batch._replace(**fields))

    found: dict[str, Entry] = {}

    def add(name: str, call: Callable[..., Any], /, **arguments: Any) -> None:
        found[name] = Entry(call, arguments)

    add("from_arrays", OfflineDataset.from_arrays, **plain)
    add("sample", dataset.sample, batch_size=2, generator=generator)
    add("sample_rows", dataset.sample_rows, batch_size=2, generators=[generator])
    add("with_n_step", dataset.with_n_step, n=2)
    add("with_rewards", dataset.with_rewards, transform=LinearReward())
    add("with_reward_column", dataset.with_reward_column, rewards=dataset.rewards)
    add("split_episodes", dataset.split_episodes, share=0.5, seed=0)
    add("with_best_episodes", dataset.with_best_episodes, share=0.5)
    add("dataset.to", dataset.to, device="cpu")
    add("ActionScaler", ActionScaler, low=[-1.0], high=[1.0])
    add("to_unit", scaler.to_unit, action=action)
    add("to_box", scaler.to_box, action=action)
    add("is_close", scaler.is_close, other=scaler)
    add("ObservationLayout", ObservationLayout, shapes=(OBS,))
    add("flatten", layout.flatten, obs=obs)
    add("unflatten", layout.unflatten, flat=obs)
    add(
        "build",
        GTPLearner.build,
        **{"obs_dim": OBS, "action_dim": ACT, "config": config, "network": None, "encoder": None},
        device="cpu",
    )
    add("from_dataset", GTPLearner.from_dataset, dataset=dataset, config=config, encoder=None)
    add("update", lambda batch: fresh().update(batch), batch=batch)
    add("update of a batch", updated, **{name: getattr(batch, name) for name in names})
    add(
        "update_from",
        lambda **k: fresh().update_from(**k),
        dataset=dataset,
        updates=1,
        batch_size=4,
    )
    add(
        "fit",
        lambda **k: fresh().fit(**k, progress=False),
        **{"dataset": dataset, "updates": 1, "batch_size": 4, "every": 1},
    )
    add(
        "predict",
        learner.predict,
        **{"obs": obs, "steps": 1, "candidates": 2, "generator": generator},
    )
    add("advantage", learner.advantage, **rows, generator=generator)
    add(
        "learner.act",
        learner.act,
        **{"obs": obs, "steps": 1, "candidates": 2, "generator": generator},
    )
    add(
        "act",
        act,
        **{"actor": learner.actor, "critic": learner.critic, "obs": obs, "steps": 1},
        **{"candidates": 2, "generator": generator},
    )
    add(
        "set_observation_statistics_",
        lambda **k: fresh().set_observation_statistics_(**k),
        mean=torch.zeros(OBS),
        std=torch.ones(OBS),
    )
    add("set_total_updates_", lambda **k: fresh().set_total_updates_(**k), total_updates=9)
    add("stream", learner.stream, name="x", device="cpu")
    add(
        "load_state_dict", lambda **k: fresh().load_state_dict(**k), state_dict=learner.state_dict()
    )
    add("MultiSeedLearner", MultiSeedLearner, learners=[learner])
    add(
        "MultiSeedLearner.from_dataset",
        MultiSeedLearner.from_dataset,
        dataset=dataset,
        config=config,
        seeds=[1],
    )
    add("MultiSeedLearner.update", MultiSeedLearner([fresh()]).update, batches=[batch])
    add("FlowMapActor", FlowMapActor, obs_dim=OBS, action_dim=ACT, config=None, seed=0)
    add("endpoint", actor.endpoint, obs=obs, x=action, t=t, s=t)
    add("flow map", actor, obs=obs, x=action, t=t, s=t)
    add("actor.sample", actor.sample, obs=obs, steps=1, noise=action, generator=None)
    add("sample_with_gradient", actor.sample_with_gradient, obs=obs, noise=action, steps=1)
    statistics = ActionStatistics(mean=(0.0,) * ACT, std=(0.5,) * ACT)
    add(
        "set_action_scales_",
        lambda **k: FlowMapActor(OBS, ACT, config.actor).set_action_scales_(**k),
        sigma_data=0.5,
        statistics=statistics,
    )
    add("QEnsemble", QEnsemble, obs_dim=OBS, action_dim=ACT, config=None, seed=0)
    add("critic", critic, **rows)
    add(
        "loss",
        functools.partial(GTPLoss(config.loss), actor, actor),
        **{**rows, "weight": t, "progress": 0.5, "generator": generator},
    )
    add("weights", AdvantageWeighter(), advantage=t)
    add("presets.get", presets.get, name="gtp")
    add("presets.task", presets.task, name="hopper-medium-v2")
    target = directory / "new.zip"
    add(
        "save_checkpoint",
        save_checkpoint,
        **{"path": target, "learner": learner, "action_scaler": scaler, "layout": layout},
        metadata={},
    )
    add("load_checkpoint", load_checkpoint, path=path, network=None, encoder=None, device="cpu")
    add("save", learner.save, path=target)
    add("load", GTPLearner.load, path=path, network=None, encoder=None, device="cpu")
    add("restore_", restore_, learner=fresh(), path=path)
    add("read_metadata", read_metadata, path=path, encoder=None)
    add("latest_valid", latest_valid, directory=directory)
    add("CheckpointFolder", CheckpointFolder, directory=directory / "folder", keep=1)
    folder = CheckpointFolder(directory / "folder", keep=1)
    add("CheckpointFolder.save", folder.save, learner=learner)
    add("load_d4rl_hdf5", load_d4rl_hdf5, path="nowhere", gamma=0.9, low=-1.0, high=1.0)
    add("load_minari", load_minari, dataset_or_id="a/b-v0", gamma=0.9)
    add("load_ogbench", load_ogbench, dataset_or_path="nowhere", split="train", gamma=0.9)
    add("load_data", load_data, config=RunConfig(dataset="nowhere.hdf5", updates=1))
    add("RunConfig", RunConfig, dataset="a/b-v0", updates=1, seed=0, gamma=0.9, n_step=1)
    add("read_result", read_result, path=directory / "result.json")
    add("read_results", read_results, out=directory / "none")
    # What SB3 has itself, it checks itself.
    ours = functools.partial(gtp_sb3.GTP, "MlpPolicy", None, batch_size=8, device="cpu")
    add("SB3 GTP", ours, dataset=dataset, gtp_config=config)
    add("SB3 predict", model.predict, observation=obs.numpy())
    add("SB3 load", gtp_sb3.GTP.load, path=directory / "none.zip")
    add(
        "Tianshou from_buffer",
        gtp_tianshou.GTP.from_buffer,
        **{"buffer": dataset, "action_space": box, "observation_space": None, "config": config},
        **{"gamma": None, "layout": None, "candidates": None, "device": None},
    )
    add("Tianshou compute_action", host.policy.compute_action, obs=np.zeros(OBS, np.float32))
    add("Tianshou load", gtp_tianshou.GTP.load, path=directory / "none.zip")
    return found


def misused(count: int | None = None, *, entry_points: dict[str, Entry] | None = None) -> Outcome:
    """C5: what does not belong there works, or is an error of ours that says what is expected.

    Excused is only what a host raises where ours has handed an argument on.

    Args:
        count: At most so many cases, evenly over all; None for all.
        entry_points: Default: those of the packages.
    """
    outcome, refused = Outcome(), 0
    with (
        tempfile.TemporaryDirectory() as directory,
        contextlib.chdir(directory),  # a word that is passed as a path becomes a file there
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=[]),  # a module among the values draws its weights
    ):
        warnings.simplefilter("ignore")
        found = entry_points or entries(Path(directory))
        cases = [
            (name, argument, what)
            for name, entry in found.items()
            for argument, what in itertools.product(entry.arguments, values())
        ]
        every = max(1, len(cases) // (count or len(cases)))
        for name, argument, what in cases[::every]:
            problem, said = _problem(found[name], argument, what)
            refused += said
            outcome.add(f"{name}({argument}={what})", problem)
    outcome.details |= {"entry points": len(found), "refused": refused}
    outcome.worst = f"{len(outcome.failures)} of {outcome.count} untyped or without a word"
    return outcome


def _problem(entry: Entry, argument: str, what: str) -> tuple[str | None, bool]:
    given = entry.arguments | {argument: values()[what]}
    try:
        with _quiet():
            entry.call(**given)
    except ValidationError:
        return None, True
    except Exception as error:
        if isinstance(error, GTPError) or (
            isinstance(error, ValueError | TypeError) and _ours(error)
        ):
            told = all(word in str(error) for word in ("got", "expected"))
            return None if told else f"says too little: {error!r:.200}", True
        if _by_host(error):
            return None, True
        return f"raised {type(error).__name__}: {error!s:.150}", True
    return None, False


def _ours(error: Exception) -> bool:
    """Returns whether a line of ours raised an error, and not what it calls."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    line = linecache.getline(frame.filename, frame.lineno or 0)
    return frame.filename.startswith(OURS) and line.strip().startswith("raise")


def _by_host(error: Exception) -> bool:
    """Returns whether a host raised an error, or what it calls, below the last line of ours."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    below = [*itertools.takewhile(lambda file: not file.startswith(OURS), reversed(files))]
    return bool(below) and any(host in below[-1] for host in HOSTS)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
