"""Can an advantage show which actions end in failure? AntMaze umaze, from the data alone.

    MINARI_DATASETS_PATH=... python -m benchmarks.failing [--updates 3000] [--output FILE]

A classifier predicts whether an episode will arrive, once from the observation and once from
observation and action, for episodes that it has not seen. If the action adds nothing, no critic can
prefer the actions that arrive. Left out is what follows once an ant stays where it will be at the
end: there it is decided. Some three minutes on one core.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import mannwhitneyu
from torch import Tensor, nn

from benchmarks.pages import RESULTS, table, write
from benchmarks.studies import NOTE
from gtp_datasets import load_minari
from gtp_experiments import data_hash
from gtp_policy.rewards import episode_numbers

OUTPUT = RESULTS / "failing.json"
DATASET = "D4RL-local/antmaze/umaze-v2"
FOLDS = 5
NEAR = 1.0  # a quarter of a corridor's width


def outcome(
    xy: npt.NDArray[np.float32], reward: npt.NDArray[np.float32], ends: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Returns per transition its episode, whether that arrives, and whether the ant stays put."""
    episode = episode_numbers(ends)
    arrives, stays = np.zeros(len(ends), bool), np.zeros(len(ends), bool)
    for number in range(episode[-1] + 1):
        rows = np.flatnonzero(episode == number)
        arrives[rows] = (reward[rows] > 0).any()
        if not arrives[rows[0]]:
            away = np.flatnonzero(np.linalg.norm(xy[rows] - xy[rows[-1]], axis=1) > NEAR)
            stays[rows[away[-1] + 1 if len(away) else 0 :]] = True
    return episode, arrives, stays


def upright(obs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Returns how far up an ant's back points, 1 to -1, from its quaternion (w, x, y, z)."""
    x, y = obs[:, 4], obs[:, 5]
    up: npt.NDArray[np.float32] = 1 - 2 * (x**2 + y**2)
    return up


def separation(
    inputs: Tensor, arrives: Tensor, train: Tensor, test: Tensor, updates: int, seed: int
) -> float:
    """Returns the probability that of two unseen transitions the one that arrives ranks higher."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            *(nn.Linear(inputs.shape[1], 256), nn.Mish(), nn.Linear(256, 256), nn.Mish()),
            nn.Linear(256, 1),
        )
        optimizer = torch.optim.AdamW(net.parameters(), 3e-4, weight_decay=1e-2)
        for _ in range(updates):
            rows = train[torch.randint(len(train), (512,))]
            loss = nn.functional.binary_cross_entropy_with_logits(
                net(inputs[rows])[:, 0], arrives[rows]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        score, label = net(inputs[test])[:, 0].numpy(), arrives[test].numpy() > 0
    wins = mannwhitneyu(score[label], score[~label]).statistic
    return float(wins / (label.sum() * (~label).sum()))


def section(record: dict[str, Any]) -> str:
    """Returns the section of the results page."""
    lines = []
    for name, folds in record["separation"].items():
        lines.append([name, f"{np.mean(folds):.3f}", f"{min(folds):.3f} to {max(folds):.3f}"])
    return "\n\n".join(
        [
            "## Why guidance does not help in the easy maze",
            f"{100 * record['failing_episodes']:.0f} % of the episodes of umaze fail, "
            f"{100 * record['on_their_back']:.0f} % of these with the ant on its back, and "
            f"{100 * record['staying']:.0f} % of all transitions are of ants that have come to "
            "stay where they will be at the end: to clone them is to stay there too, and they all "
            "weigh 1 at least. Before that a classifier predicts success in episodes that it has "
            "not seen. The probability that of two transitions it ranks the arriving one higher, "
            f"mean and range over {FOLDS} parts of the data:",
            table(["from", "mean", "range"], lines),
            "The action adds nothing to what the state shows: here, which action fails is chance, "
            "and an advantage that prefers some of them prefers noise. What helps is to leave out "
            "the episodes that failed, as in the last rows of the study of umaze.",
            f"`{record['command']}`, data: {DATASET} (sha256 {record['data_sha256'][:12]}), "
            f"{NOTE}.",
        ]
    )


def main() -> None:
    """Trains the classifiers and writes the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--updates", type=int, default=3000)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    dataset = load_minari(DATASET)
    batch = dataset.transitions
    episode, arrives, stays = outcome(
        batch.obs[:, :2].numpy(), batch.reward.numpy(), dataset.terminated | dataset.truncated
    )
    label = torch.from_numpy(arrives.astype(np.float32))
    mean, std = dataset.observation_statistics()
    obs = (batch.obs - mean) / std
    measured: dict[str, list[float]] = {}
    for name, inputs in (
        ("the observation", obs),
        ("observation and action", torch.cat([obs, batch.action], 1)),
    ):
        for fold in range(FOLDS):
            unseen = episode % FOLDS == fold
            train, test = (
                torch.from_numpy(np.flatnonzero(~stays & rows)) for rows in (~unseen, unseen)
            )
            figure = separation(inputs, label, train, test, args.updates, fold)
            measured.setdefault(name, []).append(figure)
            print(f"{name}, part {fold}: {figure:.3f}", flush=True)
    last = np.flatnonzero(np.diff(episode, append=episode[-1] + 1))  # transition of each episode
    failing = ~arrives[last]
    record = {
        "command": f"python -m benchmarks.failing --updates {args.updates}",
        "data_sha256": data_hash(dataset),
        "failing_episodes": float(np.mean(failing)),
        "on_their_back": float((upright(batch.obs[last[failing]].numpy()) < 0).mean()),
        "staying": float(stays.mean()),
        "separation": measured,
    }
    write(record, args.output)
    print(section(record))


if __name__ == "__main__":
    main()
