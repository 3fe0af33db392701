"""Environments to evaluate in: named by the experiment, never built from what a file contains."""

import contextlib
import importlib
import json
import math
import warnings
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from gtp_datasets._minari import open_minari
from gtp_datasets.spaces import action_scaler_of, has_parts
from gtp_experiments.config import ExperimentConfig
from gtp_experiments.errors import ExperimentError
from gtp_policy import OfflineDataset
from gtp_policy.errors import DataError, UnsupportedSpaceError

Env = gymnasium.Env[Any, Any]
ADVICE = "Name one with evaluation.environment (on the command line: --environment)."


def make_env(name: str, **options: Any) -> Env:  # noqa: ANN401 - those of the environment
    """Builds an environment.

    Args:
        name: An id of gymnasium; ``module:id``, where importing the module registers the id; or
            ``module:function``, where the function builds the environment. What is named is
            imported and runs.
        **options: Passed on, such as ``render_mode``.

    Returns:
        The environment.

    Raises:
        ExperimentError: If there is no such module, function or id, or building it fails.

    Example:
        >>> from gtp_experiments import make_env
        >>> make_env("Pendulum-v1").action_space
        Box(-2.0, 2.0, (1,), float32)
    """
    module_name, colon, attribute = name.rpartition(":")
    try:
        build = getattr(importlib.import_module(module_name), attribute, None) if colon else None
        with warnings.catch_warnings():
            # The data decide which version is right, and old data want an old one.
            warnings.filterwarnings("ignore", ".*out of date", DeprecationWarning)
            return build(**options) if callable(build) else gymnasium.make(attribute, **options)
    except Exception as error:  # whatever somebody else's constructor raises
        if options and isinstance(error, TypeError) and "unexpected keyword" in str(error):
            wanted = ", ".join(f"{option}=None" for option in options)
            raise ExperimentError(
                f"The environment {name!r} takes no {', '.join(options)}: got TypeError ({error}), "
                f"expected a function that passes it on: def {attribute}({wanted})."
            ) from error
        raise ExperimentError(
            f"The environment {name!r} cannot be built: got {type(error).__name__} ({error}), "
            "expected an id of gymnasium or module:function. Install what it needs, or set "
            "PYTHONPATH to the folder of the module."
        ) from error


def environment_of(config: ExperimentConfig) -> str:
    """Finds out where to evaluate: what the config names, else the dataset's own environment.

    A dataset only lends the id of its environment. It has to be registered already: nothing is
    imported because a file names it.

    Args:
        config: The experiment.

    Returns:
        A name for `make_env`.

    Raises:
        ExperimentError: If the dataset names no environment, or none that is registered.

    Example:
        >>> from gtp_experiments import EvaluationConfig, RunConfig, environment_of
        >>> evaluation = EvaluationConfig(environment="Pendulum-v1")
        >>> environment_of(RunConfig(dataset="a/b-v0", updates=1, evaluation=evaluation))
        'Pendulum-v1'
    """
    if config.evaluation.environment is not None:
        return config.evaluation.environment
    spec = None if config.is_file else _spec_of(config.dataset)
    if spec is None:
        raise ExperimentError(
            f"{config.dataset} does not say where to evaluate: got no environment, expected one. "
            f"{ADVICE}"
        )
    known = gymnasium.registry[registered(spec.get("id"), config.dataset)]
    if spec.get("kwargs", {}) != known.kwargs:
        warnings.warn(
            f"{config.dataset} was made in {known.id} with {spec.get('kwargs')}, and evaluation "
            f"uses {known.kwargs}. Name the environment to be sure.",
            stacklevel=2,
        )
    return str(known.id)


def registered(name: object, where: str) -> str:
    """Returns the name of an environment that stands in a file, if it names nothing to import.

    Args:
        name: What stands there.
        where: What messages call the file.

    Returns:
        The id.

    Raises:
        ExperimentError: If it is no id that gymnasium knows already.

    Example:
        >>> from gtp_experiments.environments import registered
        >>> registered("Pendulum-v1", "a file")
        'Pendulum-v1'
    """
    if isinstance(name, str) and name in gymnasium.registry:
        return name
    raise ExperimentError(
        f"The environment of {where} is not registered: got {name!r}, expected an id that "
        f"gymnasium knows without importing anything. {ADVICE} module:id imports the module that "
        "registers it."
    )


def check_env(env: Env, dataset: OfflineDataset, name: str) -> None:
    """Raises unless a policy of the dataset can act in the environment.

    Args:
        env: The environment.
        dataset: What the policy is trained on.
        name: What messages call the environment.

    Raises:
        ExperimentError: If the observations have other shapes, or the actions other bounds.

    Example:
        >>> import numpy as np
        >>> from gtp_experiments import check_env, make_env
        >>> from gtp_policy import OfflineDataset
        >>> dataset = OfflineDataset.from_arrays(
        ...     obs=np.zeros((1, 3)), action=[[0.0]], reward=[0.0], terminated=[1],
        ...     truncated=[0], low=[-2.0], high=[2.0])
        >>> check_env(make_env("Pendulum-v1"), dataset, "Pendulum-v1")
    """
    if not has_parts(env.observation_space, dataset.layout):
        raise ExperimentError(
            f"Observations of {name} do not fit the dataset: got {env.observation_space}, expected "
            f"{dataset.layout}. Evaluate in the environment that the data comes from."
        )
    actions, scaler = env.action_space, dataset.action_scaler
    fits = isinstance(actions, Box) and math.prod(actions.shape) == scaler.action_dim
    if fits:
        with contextlib.suppress(UnsupportedSpaceError):  # an unbounded Box takes what the data has
            fits = action_scaler_of(actions).is_close(scaler)
    if not fits:
        raise ExperimentError(
            f"Actions of {name} do not fit the dataset: got {actions}, expected {scaler}. "
            "Evaluate in the environment that the data comes from."
        )


def flat_observations(
    observations: list[Any], dataset: OfflineDataset
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Stacks and flattens observations as the dataset's were.

    Args:
        observations: One per environment, arrays or dictionaries of arrays.
        dataset: Whose layout to follow.

    Returns:
        Shape (n, O), float32.

    Example:
        >>> import numpy as np
        >>> from gtp_experiments import flat_observations
        >>> from gtp_policy import OfflineDataset
        >>> dataset = OfflineDataset.from_arrays(
        ...     obs=np.zeros((1, 3)), action=[[0.0]], reward=[0.0], terminated=[1],
        ...     truncated=[0], low=[-2.0], high=[2.0])
        >>> flat_observations([np.ones(3), np.zeros(3)], dataset).shape
        (2, 3)
    """
    layout = dataset.layout
    if not layout.keys:
        return layout.flatten(np.stack(observations))
    return layout.flatten({k: np.stack([o[k] for o in observations]) for k in layout.keys})


def _spec_of(dataset_id: str) -> dict[str, Any] | None:
    # Through the loader's door: Minari alone would build an environment to read its spaces.
    spec = open_minari(dataset_id).storage.metadata.get("env_spec")
    if not isinstance(spec, str):
        return None
    try:
        found = json.loads(spec)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{dataset_id} has a damaged `env_spec`: got {type(error).__name__}, expected JSON. "
            f"{ADVICE}"
        ) from error
    return found if isinstance(found, dict) else None
