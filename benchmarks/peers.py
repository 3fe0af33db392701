"""Peers of GTP on the same data: Gaussian cloning, TD3+BC, IQL and ReBRAC of d3rlpy.

    python -m benchmarks.peers --peer iql --dataset ID --seeds 0 1 2 --updates 50000 --out DIR

Minibatches, normalised observations, reward transform, number of updates, starts of the evaluation
and the form of the results are those of `gtp_experiments`; networks, losses and optimisers are the
library's, except for the cloning's loss. What depends on the length of a run is every method's to
choose: ``--target-rate`` of the target networks, ``--lr-schedule``. d3rlpy pins other versions of
packages than the hosts need: `make results` lays it over the environment without its dependencies.
A run that is killed starts again.
"""

import argparse
import importlib.util
import multiprocessing
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from pydantic import Field
from tqdm import tqdm

from gtp_experiments import (
    Data,
    Evaluator,
    ExperimentConfig,
    RunFolder,
    RunResult,
    load_data,
    table,
)
from gtp_experiments.arguments import add_experiment_arguments, experiment_fields
from gtp_experiments.runner import leave_with_parent
from gtp_policy import OfflineDataset, Transitions
from gtp_policy.errors import NonFiniteError

Peer = Literal["bc", "td3_bc", "iql", "rebrac"]
LIBRARY = "d3rlpy"
OPTIONS = (
    "learning_rate",
    "target_rate",
    "expectile",
    "inverse_temperature",
    "alpha",
    "actor_beta",
    "critic_beta",
)
DELAYED: dict[Peer, int] = {"td3_bc": 2, "rebrac": 2}  # updates per update of the actor


class PeerConfig(ExperimentConfig):
    """An experiment with a peer; the defaults are those of its authors, except for the sizes.

    ReBRAC's authors also have minibatches of 1024 and a learning rate of 1e-3 on some tasks; here
    every method gets the same of both, unless a command says otherwise.
    """

    added_later = ("target_rate", "lr_schedule", "actor_beta", "critic_beta")

    peer: Peer = Field(description="Which algorithm.")
    hidden: tuple[int, ...] = Field(
        default=(256, 256, 256),
        description="Widths of every network: GTP's, not the peers' (256, 256).",
    )
    learning_rate: float = Field(default=3e-4, gt=0, description="Adam's, of every network.")
    expectile: float = Field(
        default=0.7, gt=0, lt=1, description="IQL's; 0.9 is customary for AntMaze."
    )
    inverse_temperature: float = Field(default=3.0, ge=0, description="IQL's; 10 for AntMaze.")
    alpha: float = Field(default=2.5, gt=0, description="TD3+BC's weight of Q against cloning.")
    target_rate: float = Field(
        default=0.005, gt=0, le=1, description="Share of the networks in their targets' update."
    )
    lr_schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="Learning rate over the run; cosine ends at 0."
    )
    actor_beta: float = Field(
        default=0.001, ge=0, description="ReBRAC's weight of cloning in the actor's loss."
    )
    critic_beta: float = Field(
        default=0.01, ge=0, description="ReBRAC's penalty for next actions that leave the data."
    )


def build(config: PeerConfig, obs_dim: int, action_dim: int) -> Any:  # noqa: ANN401 - d3rlpy's
    """Builds the peer's algorithm with its networks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports gym, which announces its end
        import d3rlpy
        from d3rlpy.models import VectorEncoderFactory
        from d3rlpy.models.torch.imitators import ImitationLoss
        from d3rlpy.models.torch.policies import build_gaussian_distribution
        from d3rlpy.optimizers import AdamFactory
        from d3rlpy.optimizers.lr_schedulers import CosineAnnealingLRFactory

    def adam(every: int = 1) -> Any:  # noqa: ANN401 - d3rlpy's
        """Returns Adam for networks that are updated once in so many updates."""
        if config.lr_schedule == "constant":
            return AdamFactory()
        steps = -(-config.updates // every)
        return AdamFactory(lr_scheduler_factory=CosineAnnealingLRFactory(T_max=steps))

    d3rlpy.seed(config.seed)
    encoder = VectorEncoderFactory(list(config.hidden))
    # As its authors do; the critics of the others have no normalisation.
    normalised = VectorEncoderFactory(list(config.hidden), use_layer_norm=config.peer == "rebrac")
    rate = config.learning_rate
    actor_critic = {
        "actor_encoder_factory": encoder,
        "critic_encoder_factory": normalised,
        "actor_learning_rate": rate,
        "critic_learning_rate": rate,
        "actor_optim_factory": adam(DELAYED.get(config.peer, 1)),
        "critic_optim_factory": adam(),
        "batch_size": config.batch_size,
        "gamma": config.gamma,
        "tau": config.target_rate,
    }
    if config.peer == "bc":
        algorithm = d3rlpy.algos.BCConfig(
            policy_type="stochastic",
            encoder_factory=encoder,
            learning_rate=rate,
            optim_factory=adam(),
            batch_size=config.batch_size,
        )
    elif config.peer == "td3_bc":
        algorithm = d3rlpy.algos.TD3PlusBCConfig(alpha=config.alpha, **actor_critic)
    elif config.peer == "rebrac":
        algorithm = d3rlpy.algos.ReBRACConfig(
            actor_beta=config.actor_beta, critic_beta=config.critic_beta, **actor_critic
        )
    else:
        algorithm = d3rlpy.algos.IQLConfig(
            expectile=config.expectile,
            weight_temp=config.inverse_temperature,
            value_encoder_factory=encoder,
            **actor_critic,
        )
    peer = algorithm.create(device=config.device)
    peer.create_impl((obs_dim,), action_dim)
    if config.peer == "bc":

        def likelihood(obs: torch.Tensor, action: torch.Tensor) -> Any:  # noqa: ANN401
            law = build_gaussian_distribution(peer.impl.policy(obs))
            return ImitationLoss(loss=-law.log_prob(action).mean())

        # The library's own loss is the squared error of sampled actions: its variance shrinks to 0.
        peer.impl.compute_loss = likelihood
    return peer


def following_actions(dataset: OfflineDataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Finds the action after each transition.

    Returns:
        The actions, shape (N, A), and the rows that have one or need none, shape (M,): all but
        those at which an episode was cut. At a termination any action will do.
    """
    cut = dataset.truncated & ~dataset.terminated
    cut[-1] |= not dataset.terminated[-1]
    kept = torch.from_numpy(np.flatnonzero(~cut)).to(dataset.device)
    return dataset.transitions.action.roll(-1, 0), kept


def minibatch(
    batch: Transitions,
    next_action: torch.Tensor,
    device: str,
) -> Any:  # noqa: ANN401 - d3rlpy's
    """Returns transitions as d3rlpy's own record."""
    from d3rlpy.torch_utility import TorchMiniBatch

    column = torch.zeros_like(batch.reward).unsqueeze(1)
    return TorchMiniBatch(
        observations=batch.obs,
        actions=batch.action,
        rewards=batch.reward.unsqueeze(1),
        next_observations=batch.next_obs,
        next_actions=next_action,
        returns_to_go=column,
        terminals=(batch.discount == 0).float().unsqueeze(1),
        intervals=column + 1,
        device=device,
    )


def run_peer(config: PeerConfig, out: Path, line: int = 0) -> RunResult:
    """Trains and evaluates a peer as `gtp_experiments.run` does GTP."""
    torch.set_num_threads(config.threads)
    data = load_data(config)
    folder = RunFolder(out, config, data.sha256, packages=(LIBRARY,))
    if (done := folder.result()) is not None:
        return done
    folder.resume_at_(0)
    evaluator = Evaluator(config, data.dataset)
    try:
        return train(config, data, folder, evaluator, line)
    finally:
        evaluator.close()


def train(
    config: PeerConfig, data: Data, folder: RunFolder, evaluator: Evaluator, line: int
) -> RunResult:
    """Does the updates, evaluates in between, writes the result."""
    dataset = data.dataset
    mean, std = dataset.observation_statistics()
    std = torch.where(std < 1e-6, torch.ones_like(std), std)
    dataset.check_one_step("d3rlpy")
    normalized = dataset.transitions._replace(
        obs=(dataset.transitions.obs - mean) / std,
        next_obs=(dataset.transitions.next_obs - mean) / std,
    )
    next_actions, with_next = following_actions(dataset)
    peer = build(config, dataset.obs_dim, dataset.action_dim)

    def act(obs: np.ndarray) -> np.ndarray:
        rows = (torch.from_numpy(obs) - mean.cpu()) / std.cpu()
        action = np.clip(peer.predict(rows.numpy()), -1, 1)  # the mean: the peers' default
        scaled: np.ndarray = dataset.action_scaler.to_box(action)
        return scaled

    seconds = 0.0
    generator = torch.Generator(dataset.device).manual_seed(config.seed)
    bar = tqdm(
        range(1, config.updates + 1),
        f"{config.method} seed {config.seed}",
        position=line,
        disable=None,
    )
    for update in bar:
        began = time.perf_counter()
        # Only ReBRAC looks at next actions.
        count = len(with_next) if config.peer == "rebrac" else len(dataset)
        index = torch.randint(
            count, (config.batch_size,), generator=generator, device=dataset.device
        )
        index = with_next[index] if config.peer == "rebrac" else index
        rows = normalized.map(lambda field, index=index: field.index_select(0, index))
        metrics = peer.impl.update(minibatch(rows, next_actions[index], config.device), update - 1)
        seconds += time.perf_counter() - began
        last = update == config.updates
        try:
            if last or not update % config.log_every:
                check(metrics)
                folder.metrics.append(update=update, **metrics)
            if last or not update % config.evaluation.every:
                folder.record(evaluator.run(act, update))
        except NonFiniteError as error:
            return folder.finish(1000 * seconds / update, diverged=f"after {update}: {error}")
    return folder.finish(1000 * seconds / config.updates)


def check(metrics: dict[str, float]) -> None:
    """Raises if a metric is not finite."""
    bad = {name: value for name, value in metrics.items() if not np.isfinite(value)}
    if bad:
        raise NonFiniteError(f"The update is not finite: got {bad}, expected finite metrics.")


def peer_parser() -> argparse.ArgumentParser:
    """Builds the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--peer", choices=get_args(Peer), required=True)
    parser.add_argument("--lr-schedule", choices=["constant", "cosine"])
    for name in OPTIONS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=float)
    add_experiment_arguments(parser)
    return parser


def peer_configs(args: argparse.Namespace) -> list[PeerConfig]:
    """Builds one experiment per seed from parsed arguments."""
    options = {name: getattr(args, name) for name in (*OPTIONS, "lr_schedule")}
    given = {name: value for name, value in options.items() if value is not None}
    fields = {"method": args.peer, **experiment_fields(args), **given}
    return [PeerConfig(peer=args.peer, seed=seed, **fields) for seed in args.seeds]


def main() -> None:
    """Runs a peer over seeds."""
    args = peer_parser().parse_args()
    if importlib.util.find_spec(LIBRARY) is None:
        sys.exit(f"error: {LIBRARY} is not on the path; `make results` puts it there.")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, context, initializer=leave_with_parent) as pool:
        futures = [
            pool.submit(run_peer, config, args.out, line % args.jobs)
            for line, config in enumerate(peer_configs(args))
        ]
        print(table([future.result() for future in futures]))


if __name__ == "__main__":
    main()
