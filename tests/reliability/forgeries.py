"""B6: files whose every hash is right, and in whose JSON something else stands; at every door."""

import contextlib
import io
import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm

import gtp_sb3
import gtp_tianshou
from gtp_experiments import EvaluationConfig, RunConfig, reevaluate, run
from gtp_policy import GTPLearner, OfflineDataset, load_checkpoint, read_metadata, restore_
from gtp_policy.checkpoint.bundle import write_bundle
from gtp_policy.errors import GTPError
from tests.reliability.mutations import SECONDS, SLACK, peak_memory
from tests.reliability.outcome import Outcome
from tests.reliability.small import make_config

FILES = ("config.json", "weights.safetensors", "train_state.safetensors")
# What stands in the place of a value: numbers at every edge, other types, text that looks like
# something, and containers, empty and deep.
VALUES: tuple[Any, ...] = (
    *(0, 1, -1, 2, 7, 10**4, 2**31, 2**63, 10**12, -(10**30), 0.5, -0.0, 1e-300, 1e300, 3.7),
    *(True, False, None, "", "x", "0", "nan", "os:abort", "../..", "\ud800", "a" * 10_000),
    *([], {}, [0], [[]], [None], ["x"], [1e300], [10**9, 10**9], {"": 0}, {"kind": "x"}),
    *({":class": "torch.Adam"}, {":float": "nan"}, {":tuple": [1]}, {":array": [1], "dtype": "U9"}),
    *({":absent": "a function"}, {":object": "ConstantSchedule", "arguments": []}),
    {":space": {"kind": "Box", "low": 0, "high": 1, "shape": [10**5], "dtype": "float32"}},
    [[[[[[[[[[1]]]]]]]]]],
)
ENVIRONMENT = "tests.reliability.forgeries:make"
Door = Callable[[Path], Any]


def places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Yields every container of a document with each of its keys or indices."""
    keys = document.keys() if isinstance(document, dict) else range(len(document))
    for key in list(keys):
        yield document, key
        if isinstance(document[key], dict | list):
            yield from places(document[key])


def forge(document: Any, rng: np.random.Generator) -> str:
    """Changes a document in one to three places; returns what was done."""
    done = []
    host = [document["metadata"]] if "metadata" in document else []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        # What a host adds is small beside the config, and as likely to be forged.
        found = list(places(host[0] if host and rng.integers(2) else document))
        if not found:
            break
        container, key = found[rng.integers(len(found))]
        value = VALUES[rng.integers(len(VALUES))]
        kind = rng.integers(8)
        if kind == 0:
            done.append(f"{key} removed")
            container.pop(key)
        elif kind == 1 and isinstance(container, dict):
            container["more"] = value
            done.append(f"more={value!r:.40}")
        elif kind == 2:
            _, other = found[rng.integers(len(found))]
            done.append(f"{key} as {other}")
            container[key] = other
        elif kind == 3 and isinstance(container[key], int | float):
            container[key] = container[key] * int(rng.integers(-3, 1000))
            done.append(f"{key} scaled")
        else:
            container[key] = value
            done.append(f"{key}={value!r:.40}")
    return ", ".join(done)


def forged_files(count: int, *, doors: dict[str, Door] | None = None) -> Outcome:
    """B6: each forgery is a typed error or does no harm, in a second and the stated memory."""
    outcome, rng, slowest, largest, refused = Outcome(), np.random.default_rng(0), 0.0, 0.0, 0
    with TemporaryDirectory() as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a curriculum that is too fine, and the like
        originals = _originals(Path(directory))
        ways = list((doors or _doors(Path(directory), originals)).items())
        target = Path(directory, "forged.zip")
        for number in range(count):
            name, door = ways[number % len(ways)]
            files = dict(originals["evaluate" if name == "evaluate" else name.partition(":")[0]])
            first = next(iter(files))
            document = json.loads(files[first])
            what = forge(document, rng)
            files[first] = json.dumps(document).encode()
            write_bundle(target, files, written_by="another program")
            allowed = 2 * target.stat().st_size + SLACK
            problem, start = None, time.process_time()
            with peak_memory() as peak, contextlib.redirect_stdout(io.StringIO()):
                try:
                    door(target)
                except GTPError:
                    refused += 1
                except BaseException as error:
                    problem = f"raised {error!r:.200}"
            seconds = time.process_time() - start  # others may be at work
            slowest, largest = max(slowest, seconds), max(largest, peak[0])
            if seconds > SECONDS:
                problem = problem or f"took {seconds:.1f} s"
            if peak[0] > allowed:
                problem = problem or f"took {peak[0] / 2**20:.0f} MB"
            outcome.add(f"{number} {name}: {what}", problem)
    outcome.details |= {
        "refused": refused,
        "slowest, ms": round(1e3 * slowest, 1),
        "most memory, MB": round(largest / 2**20, 1),
    }
    outcome.worst = f"{len(outcome.failures)} untyped; at most {1e3 * slowest:.0f} ms"
    return outcome


def _dataset() -> OfflineDataset:
    rng = np.random.default_rng(0)
    return OfflineDataset.from_arrays(
        obs=rng.normal(size=(32, 3)),
        action=rng.uniform(-2, 2, (32, 1)),
        reward=rng.normal(size=32),
        next_obs=rng.normal(size=(32, 3)),
        terminated=np.arange(32) % 8 == 7,
        truncated=np.zeros(32),
        low=[-2.0],
        high=[2.0],
    )


def _originals(directory: Path) -> dict[str, dict[str, bytes]]:
    """Returns the files of a good save of every host; the one to forge first."""
    dataset, config = _dataset(), make_config(200)
    model = gtp_sb3.GTP(
        "MlpPolicy", None, dataset=dataset, gtp_config=config, batch_size=8, device="cpu"
    )
    model.learn(2)
    model.save(directory / "sb3")
    algorithm = gtp_tianshou.GTP.from_buffer(
        dataset, action_space=model.action_space, config=config
    )
    for _ in range(2):
        batch = dataset.sample(8, generator=algorithm.learner.stream("batch"))
        algorithm.learner.update(batch)
    algorithm.save(directory / "tianshou")
    load = load_checkpoint
    paths = {"sb3": directory / "sb3.zip", "tianshou": directory / "tianshou"}
    gtp_sb3.GTP.load(paths["sb3"])
    found = {}
    for name, path in paths.items():
        (folder := directory / f"{name} files").mkdir()
        write_bundle(folder / "a", _files_of(path), written_by="us")
        found[name] = _files_of(path)
        load(path)
    return found | {"core": found["tianshou"], "evaluate": _finished_run(directory)}


def _files_of(path: Path) -> dict[str, bytes]:
    from gtp_policy.checkpoint.bundle import read_bundle

    return read_bundle(path, FILES, limit={})[0]


def _finished_run(directory: Path) -> dict[str, bytes]:
    data = _dataset().transitions
    with h5py.File(directory / "data.hdf5", "w") as file:
        file["observations"], file["actions"] = data.obs.numpy(), data.action.numpy() / 2
        file["next_observations"] = data.next_obs.numpy()
        file["rewards"], file["terminals"] = data.reward.numpy(), data.discount.numpy() == 0
    config = RunConfig(
        dataset=str(directory / "data.hdf5"),
        updates=2,
        batch_size=8,
        policy=make_config(2),
        evaluation=EvaluationConfig(environment=ENVIRONMENT, episodes=1),
    )
    run(config, directory / "runs")
    return {"result.json": (directory / "runs" / config.name / "result.json").read_bytes()}


def make() -> Any:
    """Returns a pendulum with the bounds that the data has."""
    import gymnasium

    wrapped = gymnasium.make("Pendulum-v1", max_episode_steps=2)
    return gymnasium.wrappers.RescaleAction(wrapped, -1.0, 1.0)


def _doors(directory: Path, originals: dict[str, dict[str, bytes]]) -> dict[str, Door]:
    learner = GTPLearner.from_dataset(_dataset(), make_config(200))
    (runs,) = (directory / "runs").iterdir()

    def evaluate(path: Path) -> None:
        from gtp_policy.checkpoint.bundle import read_bundle

        content = read_bundle(path, ["result.json"], limit={})[0]["result.json"]
        (runs / "result.json").write_bytes(content)
        for old in runs.glob("*_result.json"):
            old.unlink()
        reevaluate(runs, EvaluationConfig(steps=1, episodes=1, environment=ENVIRONMENT))

    def sb3(path: Path) -> None:
        model: BaseAlgorithm = gtp_sb3.GTP.load(path)
        model.predict(np.zeros(3, np.float32), deterministic=True)

    def tianshou(path: Path) -> None:
        gtp_tianshou.GTP.load(path).policy.compute_action(np.zeros(3, np.float32))

    return {
        "core: load_checkpoint": load_checkpoint,
        "sb3: GTP.load": sb3,
        "sb3: MlpPolicy.load": gtp_sb3.MlpPolicy.load,
        "tianshou: GTP.load": tianshou,
        "core: restore_": lambda path: restore_(learner, path),
        "sb3: GTP.load again": sb3,
        "core: read_metadata": read_metadata,
        "evaluate": evaluate,
    }
