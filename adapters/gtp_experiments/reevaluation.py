"""Evaluates trained policies again: with other steps, other candidates, more episodes."""

import statistics
import time
from pathlib import Path

import torch
from pydantic import ValidationError

from gtp_experiments.config import EvaluationConfig, RunConfig
from gtp_experiments.data import Data, data_files, load_data
from gtp_experiments.environments import registered
from gtp_experiments.errors import ExperimentError
from gtp_experiments.evaluation import Act, ChunkedPolicy, Evaluator, policy_of
from gtp_experiments.records import write_json
from gtp_experiments.results import (
    RunResult,
    check_checkpoints,
    check_run,
    has_seen,
    note_seen,
    read_result,
)
from gtp_policy import (
    Checkpoint,
    CheckpointFolder,
    GTPLearnerConfig,
    OfflineDataset,
    load_checkpoint,
    read_metadata,
)
from gtp_policy.files import expanded
from gtp_policy.records import differences, what_is_wrong

TIMED_ACTIONS = 200
_WEIGHTS = "checkpoint_sha256"  # of what a kept result is of, in its provenance
# What a config may leave open, and the data or the length of the run then fill in.
_LEFT_OPEN = {
    "actor.sigma_data",
    "actor.action_statistics",
    "encoder.parts",
    "learner.gamma",
    *(
        f"learner.{name}"
        for name, _, _ in differences(
            GTPLearnerConfig().model_dump(), GTPLearnerConfig().resolved().model_dump()
        )
    ),
}


def reevaluate(
    folder: str | Path,
    evaluation: EvaluationConfig,
    *,
    method: str | None = None,
    device: str | None = None,
) -> RunResult:
    """Evaluates the last checkpoint of a run that has come to its end, and times its actions.

    The result is kept next to that of the run; the same request reads it from there, as long as the
    checkpoint is the same one and the data are what they were, or are gone. An environment that the
    run's record names is taken if it is an id that gymnasium knows; one that has to be imported is
    only ever named by the caller.

    Args:
        folder: The run's folder.
        evaluation: How to evaluate; ``every`` plays no part. An ``environment`` or ``max_steps``
            of None is the run's.
        method: What tables call it; default: the run's method with K and how one acts.
        device: Where to compute; default: where the run did.

    Returns:
        The result, with one evaluation and ``ms_per_action``.

    Raises:
        ExperimentError: If the run has not come to its end, its checkpoints are of another one, its
            data has changed, or its record names an environment that is not registered.

    Example:
        >>> from gtp_experiments import EvaluationConfig, reevaluate
        >>> reevaluate("nowhere", EvaluationConfig(steps=1))
        Traceback (most recent call last):
        ...
        gtp_experiments.errors.ExperimentError: nowhere has no finished run: got no result.json, \
expected one. Run it to its end first.
    """
    folder = expanded(folder)
    trained, before, newest = finished(folder)
    steps = evaluation.steps or before.policy.actor.steps
    if evaluation.environment is None:
        evaluation = evaluation.replace(environment=recorded_environment(folder, before))
    if evaluation.max_steps is None:
        evaluation = evaluation.replace(max_steps=before.evaluation.max_steps)
    how = f", {evaluation.candidates} candidates" if evaluation.candidates > 1 else ""
    how += ", deterministic" if evaluation.deterministic else ""
    config = before.replace(
        evaluation=evaluation,
        method=method or f"{before.method}, K = {steps}{how}",
        device=device or before.device,
    )
    path = folder / f"{config.group}_result.json"
    files, weights = data_files(before), read_metadata(newest).sha256
    done = read_result(path)
    if done is not None and _is_of(done, trained, weights):
        if files is not None and not has_seen(folder, trained.data_sha256, files):
            checkpoint = load_checkpoint(newest, train_state=False, device="cpu")
            data_of(folder, trained, before.replace(device="cpu"), checkpoint)
            note_seen(folder, trained.data_sha256, files)
        return done
    checkpoint = load_checkpoint(newest, train_state=False, device=config.device)
    data, learner = data_of(folder, trained, config, checkpoint), checkpoint.learner
    evaluator = Evaluator(config, data.dataset)
    try:
        seen = evaluator.run(policy_of(learner, data.dataset, evaluation), learner.updates)
    finally:
        evaluator.close()
    result = trained.replace(
        method=config.method,
        group=config.group,
        evaluations=(seen,),
        config=config.model_dump(mode="json"),
        ms_per_action=_ms_per_action(policy_of(learner, data.dataset, evaluation), data.dataset),
        provenance={**trained.provenance, _WEIGHTS: weights},
    )
    write_json(path, result.model_dump(mode="json"))
    return result


def _is_of(done: RunResult, trained: RunResult, weights: str) -> bool:
    """Returns whether a kept result is of the weights that are there: a run may be made again."""
    if _WEIGHTS in done.provenance:
        return done.provenance[_WEIGHTS] == weights
    # Earlier versions kept the time that the training had taken alone.
    return done.ms_per_update == trained.ms_per_update


def finished(folder: Path) -> tuple[RunResult, RunConfig, Path]:
    """Returns what a run that has come to its end left: result, config and its last checkpoint.

    Args:
        folder: The run's folder.

    Returns:
        The three.

    Raises:
        ExperimentError: If it has not come to its end, its record is none of a run, or its
            checkpoints are of another one, or links.

    Example:
        >>> from pathlib import Path
        >>> from gtp_experiments.reevaluation import finished
        >>> finished(Path("nowhere"))
        Traceback (most recent call last):
        ...
        gtp_experiments.errors.ExperimentError: nowhere has no finished run: got no result.json, \
expected one. Run it to its end first.
    """
    check_checkpoints(folder)
    trained = read_result(folder / "result.json")
    newest = CheckpointFolder(folder / "checkpoints").latest()
    if trained is None or newest is None:
        raise ExperimentError(
            f"{folder} has no finished run: got no {'checkpoint' if trained else 'result.json'}, "
            "expected one. Run it to its end first."
        )
    try:
        config = RunConfig.from_record(trained.config)
    except ValidationError as error:
        raise ExperimentError(
            f"{folder}/result.json holds no config of a run: got {what_is_wrong(error)}, expected "
            "what a run writes."
        ) from error
    _check_of_record(folder, config, newest)
    return trained, config, newest


def _check_of_record(folder: Path, config: RunConfig, newest: Path) -> None:
    """Raises unless a checkpoint is of the run that a record describes."""
    info = read_metadata(newest)
    recorded, trained_with = (c.model_dump(mode="json") for c in (config.policy, info.config))
    differing = [
        (name, there, here)
        for name, there, here in differences(recorded, trained_with)
        # The fineness of the curriculum goes by the length of the run as well.
        if not name.startswith("loss.curriculum") and not (there is None and name in _LEFT_OPEN)
    ]
    if differing:
        got, expected = (
            ", ".join(f"{name}={pair[i]!s:.60}" for name, *pair in differing[:9]) for i in (0, 1)
        )
        raise ExperimentError(
            f"{folder}/result.json is of another policy than its checkpoint: got {got}, expected "
            f"{expected}. Restore the run's own checkpoints, or run again in another folder."
        )
    check_run(newest, info.metadata, config.name, folder.resolve().name)


def recorded_environment(folder: Path, config: RunConfig) -> str | None:
    """Returns the environment that a run's record names; None where it leaves it to the data.

    A file names no module to import, not even one that the run was started with.

    Args:
        folder: The run's folder.
        config: Its config.

    Returns:
        An id that gymnasium knows, or None.

    Raises:
        ExperimentError: If it names something else.

    Example:
        >>> from pathlib import Path
        >>> from gtp_experiments import EvaluationConfig, RunConfig
        >>> from gtp_experiments.reevaluation import recorded_environment
        >>> evaluation = EvaluationConfig(environment="Pendulum-v1")
        >>> config = RunConfig(dataset="a/b-v0", updates=1, evaluation=evaluation)
        >>> recorded_environment(Path("runs/a"), config)
        'Pendulum-v1'
    """
    named = config.evaluation.environment
    return None if named is None else registered(named, f"{folder}/result.json")


def data_of(folder: Path, trained: RunResult, config: RunConfig, checkpoint: Checkpoint) -> Data:
    """Loads the data of a run, if it is what it was, with the rewards of single steps.

    Args:
        folder: The run's folder.
        trained: Its result.
        config: Its config.
        checkpoint: Its checkpoint, with the bounds of actions where the config leaves them to the
            environment, which is another one by now, or one that a file must not name.

    Returns:
        The data.

    Raises:
        ExperimentError: If it has changed.
    """
    scaler = checkpoint.action_scaler
    config = config.replace(n_step=1)  # what is summed for the critic of a run plays no part
    if scaler is not None and config.is_file:
        low, high = (tuple(bound.tolist()) for bound in (scaler.low, scaler.high))
        config = config.replace(
            low=low if config.low is None else config.low,
            high=high if config.high is None else config.high,
        )
    data = load_data(config)
    if data.sha256 != trained.data_sha256:
        raise ExperimentError(
            f"The data of {folder} has changed: got another hash of {config.dataset}, expected the "
            "one it was trained on. Restore the data, or train again."
        )
    return data


def _ms_per_action(act: Act, dataset: OfflineDataset) -> float:
    """Returns the median time of one action for one observation, after some to warm up."""
    # The newest observation; of chunks, the time of one call is shared by their steps.
    obs = dataset.rows(0, 1).obs[:, -dataset.layout.obs_dim :].cpu().numpy()
    if isinstance(act, ChunkedPolicy):
        act.expect([0], [True])
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = []
        for _ in range(TIMED_ACTIONS):
            began = time.perf_counter()
            for _ in range(dataset.chunk):
                act(obs)
            times.append((time.perf_counter() - began) / dataset.chunk)
    finally:
        torch.set_num_threads(before)
    return 1000 * statistics.median(times[TIMED_ACTIONS // 10 :])
