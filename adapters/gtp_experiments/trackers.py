"""What a run measures, sent to TensorBoard or Weights & Biases while it goes on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal, Protocol

from gtp_experiments.config import ExperimentConfig
from gtp_experiments.errors import ExperimentError
from gtp_policy.errors import MissingDependencyError, how_to_install, suggestion

TrackerName = Literal["tensorboard", "wandb"]
TRACKERS: tuple[TrackerName, ...] = ("tensorboard", "wandb")
"""The trackers by the names that the command line knows."""


class Tracker(Protocol):
    """Takes figures by the number of updates they belong to.

    Example:
        >>> from gtp_experiments import Tracker
        >>> sorted(name for name in vars(Tracker) if not name.startswith("_"))
        ['close', 'log']
    """

    def log(self, update: int, figures: Mapping[str, float]) -> None:
        """Adds figures.

        Args:
            update: Number of updates.
            figures: Numbers by name, such as ``train/actor_loss`` or ``evaluation/score``.
        """

    def close(self) -> None:
        """Writes what is not written yet."""


class _All:
    """Several trackers as one."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    def log(self, update: int, figures: Mapping[str, float]) -> None:
        for tracker in self._trackers:
            tracker.log(update, figures)

    def close(self) -> None:
        """Leaves closing to those who opened them."""


@contextmanager
def tracking(
    track: Sequence[TrackerName | Tracker], config: ExperimentConfig, folder: Path, done: int
) -> Iterator[Tracker]:
    """Opens trackers for one run, and closes them whatever happens.

    Args:
        track: Names of `TRACKERS`, which are opened and closed here, or open trackers.
        config: The experiment.
        folder: The run's folder; files of trackers lie below it.
        done: Updates that the run goes on from: what was logged after them is dropped.

    Yields:
        All of them as one.

    Raises:
        ExperimentError: If there is no such tracker, or Weights & Biases refuses.
        MissingDependencyError: If its package is not installed.

    Example:
        >>> from pathlib import Path
        >>> from gtp_experiments import RunConfig
        >>> from gtp_experiments.trackers import tracking
        >>> with tracking([], RunConfig(dataset="a/b-v0", updates=1), Path("runs/a"), 0) as tracker:
        ...     tracker.log(1, {"train/actor_loss": 0.5})
    """
    make: dict[str, Callable[[ExperimentConfig, Path, int], Tracker]] = {
        "tensorboard": _TensorBoard,
        "wandb": _Wandb,
    }
    for one in track:
        if isinstance(one, str) and one not in make:
            raise ExperimentError(
                f"There is no such tracker: got {one!r}, expected {' or '.join(TRACKERS)}."
                f"{suggestion(one, TRACKERS)}"
            )
    with ExitStack() as stack:
        found: list[Tracker] = []
        for one in track:
            if isinstance(one, str):
                found.append(make[one](config, folder, done))
                stack.callback(found[-1].close)
            else:
                found.append(one)
        yield _All(found)


class _TensorBoard:
    """Event files in the run's folder; ``tensorboard --logdir`` of the folder of all runs."""

    def __init__(self, config: ExperimentConfig, folder: Path, done: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard", error) from error
        # Steps that a crash took back are hidden by those that follow.
        purge = done + 1 if done else None
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def log(self, update: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, update)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """A run of Weights & Biases with the run's name as its id, so that a resumed one goes on.

    Project, entity and mode are those of its own environment variables: ``WANDB_PROJECT``,
    ``WANDB_ENTITY``, and ``WANDB_MODE=offline`` where there is no network.
    """

    def __init__(self, config: ExperimentConfig, folder: Path, done: int) -> None:
        try:
            import wandb
        except ImportError as error:
            raise _missing("wandb", error) from error
        try:
            self._run = wandb.init(
                id=config.name,
                name=config.name,
                group=f"{config.method} {config.group}",
                config=config.model_dump(mode="json"),
                dir=str(folder),
                resume="allow",
                reinit="create_new",  # seeds in one program have one each
            )
        except Exception as error:  # whatever it raises without a key or a network
            raise ExperimentError(
                f"Weights & Biases cannot be used: got {type(error).__name__} ({error}), expected "
                "a run. Log in with `wandb login`, or set WANDB_MODE=offline."
            ) from error

    def log(self, update: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=update)

    def close(self) -> None:
        self._run.finish()


def _missing(name: str, error: ImportError) -> MissingDependencyError:
    return MissingDependencyError(f"`{name}` is not installed: got {error}. {how_to_install(name)}")
