"""Workers of a sweep as jobs of SLURM, by submitit."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gtp_experiments.config import RunConfig
from gtp_experiments.errors import ExperimentError
from gtp_experiments.sweep import SweepConfig, check_values, open_study, work
from gtp_policy.errors import MissingDependencyError, how_to_install
from gtp_policy.files import expanded

if TYPE_CHECKING:
    import submitit


def submit(
    configs: Sequence[RunConfig],
    search: SweepConfig,
    out: str | Path,
    *,
    storage: str | None = None,
    jobs: int = 1,
    cluster: str | None = None,
    **settings: str | int,
) -> "list[submitit.Job[None]]":
    """Submits workers of a sweep; the folder of runs and the storage are the machines' to share.

    Args:
        configs: As for `sweep`.
        search: As for `sweep`.
        out: As for `sweep`, on a disk that all machines see.
        storage: As for `sweep`.
        jobs: Number of workers.
        cluster: What submitit submits to: None for SLURM, ``"local"`` for processes of this
            machine.
        **settings: submitit's, by its names: ``timeout_min``, ``gpus_per_node`` and so on; of
            ``slurm_partition`` and its like the prefix can be left out.

    Returns:
        submitit's jobs.

    Raises:
        ExperimentError: If submitit refuses: no SLURM here, or no such setting.
        MissingDependencyError: If submitit is not installed.

    Example:
        >>> from gtp_experiments.slurm import submit
        >>> submit.__name__
        'submit'
    """
    try:
        import submitit
    except ImportError as error:
        raise MissingDependencyError(
            f"submitit is not installed: got {error}. {how_to_install('slurm')}"
        ) from error
    if jobs < 1:
        raise ExperimentError(f"`jobs` is out of range: got {jobs}, expected at least 1.")
    out = expanded(out).resolve()
    check_values(configs, search)
    open_study(configs, search, out, storage)
    named: dict[str, Any] = {
        f"slurm_{name}" if name in ("partition", "qos", "account", "constraint") else name: value
        for name, value in settings.items()
    }
    try:
        # With None submitit would take processes of this machine where there is no SLURM.
        executor = submitit.AutoExecutor(folder=out / "slurm", cluster=cluster or "slurm")
        executor.update_parameters(**named)
        with executor.batch():
            submitted = [executor.submit(work, configs, search, out, storage) for _ in range(jobs)]
    except (RuntimeError, NameError, TypeError, ValueError, OSError) as error:
        raise ExperimentError(
            f"submitit refuses: got {type(error).__name__} ({error}), expected SLURM on this "
            "machine and settings that it knows. Without SLURM, sweep takes workers on this "
            "machine: leave --slurm out, and set --jobs."
        ) from error
    return submitted
