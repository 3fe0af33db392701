"""Experiments with generative trajectory policies: train, evaluate, resume, compare.

One run is one directory with everything that decided its result. ``python -m gtp_experiments`` is
the command; the functions here are what it calls. Needs the extra ``experiments``.
"""

try:
    import gymnasium as _gymnasium  # noqa: F401
    import scipy as _scipy  # noqa: F401
    import tqdm as _tqdm  # noqa: F401
except ImportError as error:
    from gtp_policy.errors import MissingDependencyError, how_to_install

    raise MissingDependencyError(
        f"A package that experiments need is not installed: got `{error}`. "
        + how_to_install("experiments")
    ) from error

from gtp_experiments.config import (
    EvaluationConfig,
    ExperimentConfig,
    RunConfig,
)
from gtp_experiments.data import Data, data_hash, load_data
from gtp_experiments.drawing import draw
from gtp_experiments.environments import check_env, environment_of, flat_observations, make_env
from gtp_experiments.errors import ExperimentError, InUseError
from gtp_experiments.evaluation import Evaluation, Evaluator, evaluate, policy_of
from gtp_experiments.listing import list_of_runs, shown
from gtp_experiments.mountain_car import mountain_car_logs
from gtp_experiments.offline import ActionFit, fit_of_actions, sliced_distance
from gtp_experiments.paper import PAPER
from gtp_experiments.plots import film, plot_actions, plot_advantages, plot_curves, plot_flow
from gtp_experiments.provenance import provenance
from gtp_experiments.reevaluation import reevaluate
from gtp_experiments.results import Reference, RunFolder, RunResult, read_result, read_results
from gtp_experiments.runner import run, run_all, run_seeds
from gtp_experiments.slurm import submit
from gtp_experiments.statistics import (
    Estimate,
    Spread,
    difference_interval,
    interquartile_mean,
    mean_interval,
    probability_of_improvement,
    spread,
)
from gtp_experiments.sweep import Range, SweepConfig, outcome, sweep
from gtp_experiments.table import Row, markdown, rows, table
from gtp_experiments.tasks import TASKS, Task
from gtp_experiments.trackers import TRACKERS, Tracker, tracking

__all__ = [
    "PAPER",
    "TASKS",
    "TRACKERS",
    "ActionFit",
    "Data",
    "Estimate",
    "Evaluation",
    "EvaluationConfig",
    "Evaluator",
    "ExperimentConfig",
    "ExperimentError",
    "InUseError",
    "Range",
    "Reference",
    "Row",
    "RunConfig",
    "RunFolder",
    "RunResult",
    "Spread",
    "SweepConfig",
    "Task",
    "Tracker",
    "check_env",
    "data_hash",
    "difference_interval",
    "draw",
    "environment_of",
    "evaluate",
    "film",
    "fit_of_actions",
    "flat_observations",
    "interquartile_mean",
    "list_of_runs",
    "load_data",
    "make_env",
    "markdown",
    "mean_interval",
    "mountain_car_logs",
    "outcome",
    "plot_actions",
    "plot_advantages",
    "plot_curves",
    "plot_flow",
    "policy_of",
    "probability_of_improvement",
    "provenance",
    "read_result",
    "read_results",
    "reevaluate",
    "rows",
    "run",
    "run_all",
    "run_seeds",
    "shown",
    "sliced_distance",
    "spread",
    "submit",
    "sweep",
    "table",
    "tracking",
]
