"""The same policy in the core, in Tianshou and in Stable-Baselines3: equal, and does it learn?

    python -m benchmarks.hosts [--seeds 3] [--output FILE]

1. PointMaze: the maze of `benchmarks.pointmaze`, trained by each host's own training loop on one
   dataset; whether the parameters are equal bit for bit, and success on the same episodes through
   each host's own way to act.
2. Pendulum: a dataset of a mediocre controller (`examples.pendulum`), improved upon by both hosts.
3. Identity: Stable-Baselines3's one-step environment, online, 400 steps.
"""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from benchmarks.clock import training_parser, versions
from benchmarks.pages import RESULTS, write
from examples import pendulum
from examples.pointmaze import UMAZE, collect, evaluate, make_env
from examples.quickstart import GAMMA, maze_config, maze_dataset_id, train, worker_pool
from gtp_datasets import load_minari
from gtp_experiments import mean_interval
from gtp_policy import (
    GTPConfig,
    GTPLearner,
    OfflineDataset,
    QEnsembleConfig,
    presets,
)

HOSTS = ("gtp_policy", "gtp_tianshou", "gtp_sb3")
Act = Callable[[Any], np.ndarray]  # observations of the environment, batched, to its actions


def train_in(
    host: str,
    dataset: OfflineDataset,
    config: GTPConfig,
    spaces: tuple[gym.Space[Any], gym.Space[Any]],
    deterministic: bool,
) -> tuple[GTPLearner, Act, float]:
    """Trains by the host's own loop; returns learner, the host's way to act, ms per update."""
    torch.set_num_threads(1)
    updates = config.learner.total_updates
    if host == "gtp_policy":
        learner, ms = train(dataset, config, name=f"{host}, seed {config.learner.seed}")
        generator = torch.Generator().manual_seed(config.learner.seed)

        def act(obs: Any) -> np.ndarray:  # noqa: ANN401 - array or dict of arrays
            flat = torch.from_numpy(dataset.layout.flatten(obs))
            action = learner.act(flat, deterministic=deterministic, generator=generator)
            return dataset.action_scaler.to_box(action).numpy()

        return learner, act, ms
    start = time.perf_counter()
    if host == "gtp_tianshou":
        from tianshou.data import Batch
        from tianshou.trainer import OfflineTrainerParams

        from gtp_tianshou import GTP as TianshouGTP

        algorithm = TianshouGTP.from_buffer(
            dataset,
            action_space=spaces[1],
            observation_space=spaces[0],
            config=config,
            deterministic_eval=deterministic,
        )
        algorithm.run_training(
            OfflineTrainerParams(
                buffer=dataset,
                batch_size=256,
                max_epochs=1,
                epoch_num_steps=updates,
                show_progress=False,
                verbose=False,
            )
        )
        seconds, policy = time.perf_counter() - start, algorithm.policy

        def act(obs: Any) -> np.ndarray:  # noqa: ANN401 - array or dict of arrays
            return policy.map_action(policy(Batch(obs=obs, info={})).act)

        return algorithm.learner, act, 1000 * seconds / updates
    from gtp_sb3 import GTP as SB3GTP

    model = SB3GTP(
        "MultiInputPolicy" if dataset.obs_keys else "MlpPolicy",
        None,
        dataset=dataset,
        gtp_config=config,
        device="cpu",
    ).learn(updates, log_interval=None)
    seconds = time.perf_counter() - start

    def act(obs: Any) -> np.ndarray:  # noqa: ANN401 - array or dict of arrays
        return model.predict(obs, deterministic=deterministic)[0]

    return model.learner, act, 1000 * seconds / updates


def fingerprint(learner: GTPLearner) -> str:
    """Returns a hash of every network, target networks included."""
    digest = hashlib.sha256()
    for name, tensor in sorted(dict(learner.named_parameters()).items()):
        digest.update(name.encode() + tensor.detach().numpy().tobytes())
    return digest.hexdigest()


def run_maze(host: str, dataset_id: str, seed: int, updates: int, episodes: int) -> dict[str, Any]:
    """Trains in the maze by one host and evaluates by it: a job for a separate process."""
    dataset, env = load_minari(dataset_id, gamma=GAMMA), make_env(UMAZE)
    spaces = env.observation_space, env.action_space
    config = maze_config(3.0, updates, seed)
    learner, act, ms = train_in(host, dataset, config, spaces, deterministic=False)
    result = evaluate(
        lambda obs: act(dataset.layout.unflatten(obs)),
        env_id=UMAZE,
        episodes=episodes,
        seed=10_000,
    )
    return {
        "host": host,
        "seed": seed,
        "parameters": fingerprint(learner),
        "ms_per_update": ms,
        "success": result.success.astype(float).tolist(),
        "steps": result.steps.astype(float).tolist(),
    }


def pendulum_config(updates: int, seed: int) -> GTPConfig:
    """Returns the paper's method with small networks, for a run of a minute."""
    paper, hidden = presets.paper_loss(), (64, 64)
    return paper.replace(
        actor=paper.actor.replace(hidden=hidden),
        critic=QEnsembleConfig(hidden=hidden, layer_norm=False),
        weighter=paper.weighter.replace(eta=5.0),
        learner=paper.learner.replace(
            total_updates=updates, actor_lr=1e-3, critic_lr=1e-3, seed=seed
        ),
    )


def run_pendulum(host: str, seed: int, updates: int, episodes: int) -> dict[str, Any]:
    """Trains on the controller's data by one host: a job for a separate process."""
    dataset, behaviour = pendulum.collect(100, seed, gamma=0.95)
    env = gym.make("Pendulum-v1")
    spaces = env.observation_space, env.action_space
    config = pendulum_config(updates, seed)
    _, act, ms = train_in(host, dataset, config, spaces, deterministic=True)
    returns = pendulum.evaluate(act, episodes, seed=10_000)
    return {
        "host": host,
        "seed": seed,
        "behaviour": behaviour,
        "ms_per_update": ms,
        "returns": returns.tolist(),
    }


def run_identity(seed: int, steps: int) -> dict[str, Any]:
    """Trains online in Stable-Baselines3's identity environment and evaluates as its tests do."""
    from stable_baselines3.common.envs import IdentityEnvBox
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import DummyVecEnv

    from gtp_sb3 import GTP

    torch.set_num_threads(1)
    env = DummyVecEnv([lambda: IdentityEnvBox(eps=0.5)])
    model = GTP("MlpPolicy", env, seed=seed, device="cpu", **IDENTITY).learn(steps)
    mean, std = evaluate_policy(model, env, n_eval_episodes=20, warn=False)
    return {"seed": seed, "steps": steps, "reward": float(mean), "std": float(std)}


# 400 steps are few: exploration takes the best of several proposals.
IDENTITY: dict[str, Any] = {
    "learning_rate": 1e-3,
    "gamma": 0.95,
    "tau": 0.02,
    "policy_kwargs": {"net_arch": [64, 64], "candidates": 8},
}


def main() -> None:
    """Runs everything and writes the figures."""
    parser = training_parser(__doc__, RESULTS / "hosts.json", updates=4_000, seeds=3)
    parser.add_argument("--pendulum-updates", type=int, default=6_000)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--data", type=Path, default=Path("outputs/minari"))
    args = parser.parse_args()
    os.environ.setdefault("MINARI_DATASETS_PATH", str(args.data.resolve()))
    dataset_id = maze_dataset_id(100_000)
    collect(dataset_id)
    with worker_pool(args.processes) as pool:
        maze = [
            pool.submit(run_maze, host, dataset_id, seed, args.updates, args.episodes)
            for seed in range(args.seeds)
            for host in HOSTS
        ]
        swing = [
            pool.submit(run_pendulum, host, seed, args.pendulum_updates, 20)
            for seed in range(args.seeds)
            for host in HOSTS[1:]
        ]
        identity = [pool.submit(run_identity, seed, 400) for seed in range(args.seeds)]
        runs, pendulums, identities = (
            [future.result() for future in futures] for futures in (maze, swing, identity)
        )
    by_host = {host: [run for run in runs if run["host"] == host] for host in HOSTS}
    record = {
        "command": f"python -m benchmarks.hosts --seeds {args.seeds} --updates {args.updates} "
        f"--pendulum-updates {args.pendulum_updates} --episodes {args.episodes}",
        "seeds": args.seeds,
        "episodes_per_seed": args.episodes,
        "updates": args.updates,
        "versions": versions(["gymnasium", "mujoco", "tianshou", "stable-baselines3"]),
        "equal_parameters": all(
            len({by_host[host][seed]["parameters"] for host in HOSTS}) == 1
            for seed in range(args.seeds)
        ),
        "pointmaze": {
            host: {
                name: {
                    "mean": float(np.mean([run[name] for run in of_host])),
                    "interval_95": mean_interval(np.array([run[name] for run in of_host])),
                }
                for name in ("success", "steps")
            }
            | {"ms_per_update": float(np.median([run["ms_per_update"] for run in of_host]))}
            for host, of_host in by_host.items()
        },
        "pendulum": {
            "updates": args.pendulum_updates,
            "data": "examples.pendulum.collect, 100 episodes, the controller and the run share a "
            "seed",
            "runs": pendulums,
        },
        "identity": identities,
    }
    write(record, args.output)
    print("equal parameters:", record["equal_parameters"])
    for host, row in record["pointmaze"].items():
        print(host, row)
    for run in pendulums:
        mean = np.mean(run["returns"])
        print(f"{run['host']} seed {run['seed']}: {run['behaviour']:.0f} -> {mean:.0f}")
    print("identity:", [run["reward"] for run in identities])
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
