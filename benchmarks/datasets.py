"""Conversion of datasets of 1M x 17, and of a folder of 10,000 npz files: time and memory, as JSON.

    python -m benchmarks.datasets [--steps 1000000] [--output datasets.json]

The dataset is made in a separate process, so that its memory is not in the figures. The memory
is the growth of the resident set's peak over the size of the result, h5py and Minari included.
"""

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

OBS_DIM, ACTION_DIM, EPISODE_STEPS, NPZ_STEPS = 17, 6, 1000, 50
DATASET_ID = "benchmark/conversion-v0"


def write_minari(steps: int) -> None:
    """Writes episodes of 1000 random steps in float64, the type that MuJoCo observations have."""
    import minari
    from gymnasium.spaces import Box
    from minari.data_collector import EpisodeBuffer

    rng = np.random.default_rng(0)

    def episode() -> EpisodeBuffer:
        n = EPISODE_STEPS
        return EpisodeBuffer(
            observations=rng.normal(size=(n + 1, OBS_DIM)),
            actions=rng.uniform(-1, 1, (n, ACTION_DIM)).astype(np.float32),
            rewards=rng.normal(size=n),
            terminations=np.zeros(n, bool),
            truncations=np.arange(n) == n - 1,
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Minari wants an author and a description
        minari.create_dataset_from_buffers(
            DATASET_ID,
            [episode() for _ in range(steps // EPISODE_STEPS)],
            observation_space=Box(-np.inf, np.inf, (OBS_DIM,), np.float64),
            action_space=Box(-1, 1, (ACTION_DIM,)),
        )


def write_d4rl(path: Path, steps: int) -> None:
    """Writes one compressed file of random rows without next observations."""
    import h5py

    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for name, data in {
            "observations": rng.normal(size=(steps, OBS_DIM)).astype(np.float32),
            "actions": rng.uniform(-1, 1, (steps, ACTION_DIM)).astype(np.float32),
            "rewards": rng.normal(size=steps).astype(np.float32),
            "terminals": np.zeros(steps, bool),
            "timeouts": np.arange(steps) % EPISODE_STEPS == EPISODE_STEPS - 1,
        }.items():
            file.create_dataset(name, data=data, compression="gzip")


def write_npz(folder: Path, episodes: int) -> None:
    """Writes a folder with a file per episode of 50 random steps."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(episodes):
        np.savez(
            folder / f"episode_{number}.npz",
            obs=rng.normal(size=(NPZ_STEPS + 1, OBS_DIM)).astype(np.float32),
            action=rng.uniform(-1, 1, (NPZ_STEPS, ACTION_DIM)).astype(np.float32),
            reward=rng.normal(size=NPZ_STEPS).astype(np.float32),
        )


def peak_rss() -> int:
    """Returns the largest resident set so far in bytes: Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def convert(what: str, where: str) -> dict[str, float]:
    """Converts and reports once; runs in a separate process, so that the peak is its own."""
    import h5py  # noqa: F401 (imports are not what is measured)
    import minari  # noqa: F401

    from gtp_datasets import load_d4rl_hdf5, load_minari, load_npz, report

    torch.set_num_threads(1)
    before = peak_rss()
    start = time.perf_counter()
    if what == "minari":
        dataset = load_minari(where)
    elif what == "d4rl":
        dataset = load_d4rl_hdf5(where)
    else:
        dataset = load_npz(where, low=-1, high=1)
    seconds = time.perf_counter() - start
    grown = peak_rss() - before
    start = time.perf_counter()
    report(dataset)
    return {
        "transitions": len(dataset),
        "seconds": round(seconds, 2),
        "result_bytes": dataset.nbytes,
        "peak_rss_increase_bytes": grown,
        "peak_over_result": round(grown / dataset.nbytes, 2),
        "report_seconds": round(time.perf_counter() - start, 2),
    }


def main() -> None:
    """Makes the files, converts them and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--episodes", type=int, default=10_000, help="files in the npz folder")
    parser.add_argument("--output", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    fresh = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MINARI_DATASETS_PATH"] = folder  # inherited by the processes below
        path, logs = Path(folder) / "d4rl.hdf5", Path(folder) / "npz"
        jobs = (
            (write_minari, (arguments.steps,)),
            (convert, ("minari", DATASET_ID)),
            (write_d4rl, (path, arguments.steps)),
            (convert, ("d4rl", str(path))),
            (write_npz, (logs, arguments.episodes)),
            (convert, ("npz", str(logs))),
        )
        done = []
        for function, inputs in jobs:
            with fresh.Pool(1) as pool:
                done.append(pool.apply(function, inputs))
    figures = {
        "shape": {"obs_dim": OBS_DIM, "action_dim": ACTION_DIM, "episode_steps": EPISODE_STEPS},
        "versions": {name: version(name) for name in ("minari", "h5py", "numpy", "torch")},
        "minari": done[1],
        "d4rl_gzip": done[3],
        "npz_folder": {"episodes": arguments.episodes, **done[5]},
    }
    text = json.dumps(figures, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
