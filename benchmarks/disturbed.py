"""Experiments with advantages that are wrong on purpose: how much error does guidance stand?

    python -m benchmarks.disturbed --advantage-noise 0.5 --dataset ID --updates 30000 --out DIR

Everything else is as in `python -m gtp_experiments run`: options, resuming, records, names of runs.
"""

import argparse
import sys

import torch
from pydantic import Field
from torch import Tensor

from gtp_experiments import RunConfig
from gtp_experiments.arguments import add_experiment_arguments, add_policy_arguments, run_fields
from gtp_experiments.cli import run_and_report
from gtp_policy import AdvantageWeighter, GTPLearner, OfflineDataset


class DisturbedWeighter(AdvantageWeighter):
    """Weights of disturbed advantages; the noise is a function of the seed and the update.

    Args:
        learner: The learner that uses it.
        noise: Standard deviation of Gaussian noise, in units of the minibatch's advantages'.
        bias: What is added, in the same units.
    """

    def __init__(self, learner: GTPLearner, noise: float, bias: float) -> None:
        super().__init__(learner.weighter.config)
        self.noise, self.bias = noise, bias
        # A bound method, since a module would register the learner itself as a submodule.
        self.stream = learner.stream

    def forward(self, advantage: Tensor) -> Tensor:
        """Returns one weight per advantage, shape (B,)."""
        generator = self.stream("advantage noise")
        noise = torch.randn(
            advantage.shape, generator=generator, dtype=advantage.dtype, device=advantage.device
        )
        spread = advantage.std(correction=0)
        weight: Tensor = super().forward(advantage + spread * (self.noise * noise + self.bias))
        return weight


class DisturbedConfig(RunConfig):
    """An experiment with wrong advantages."""

    advantage_noise: float = Field(
        default=0.0,
        ge=0,
        description="Standard deviation of Gaussian noise on the advantages, in units of the "
        "minibatch's.",
    )
    advantage_bias: float = Field(
        default=0.0, description="Added to the advantages in the same units."
    )

    def build_learner(self, dataset: OfflineDataset) -> GTPLearner:
        """Builds the learner with its disturbed weighter."""
        learner = super().build_learner(dataset)
        learner.weighter = DisturbedWeighter(learner, self.advantage_noise, self.advantage_bias)
        return learner


def command_parser() -> argparse.ArgumentParser:
    """Builds the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_experiment_arguments(parser)
    add_policy_arguments(parser)
    parser.add_argument("--advantage-noise", type=float, default=0.0)
    parser.add_argument("--advantage-bias", type=float, default=0.0)
    return parser


def configs_of(args: argparse.Namespace) -> list[DisturbedConfig]:
    """Builds one experiment per seed from parsed arguments."""
    fields = run_fields(args)
    for name in ("advantage_noise", "advantage_bias"):
        fields[name] = getattr(args, name)
    return [DisturbedConfig(seed=seed, **fields) for seed in args.seeds]


def main() -> int:
    """Runs the experiments and prints their table."""
    args = command_parser().parse_args()
    return run_and_report(configs_of(args), args.out, args.jobs)


if __name__ == "__main__":
    sys.exit(main())
