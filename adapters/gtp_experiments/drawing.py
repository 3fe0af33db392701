"""Pictures of runs: what `plots` draws, of the last checkpoint and the data of each run."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gtp_experiments.environments import environment_of
from gtp_experiments.errors import ExperimentError
from gtp_experiments.evaluation import policy_of
from gtp_experiments.plots import film, plot_actions, plot_advantages, plot_curves, plot_flow
from gtp_experiments.reevaluation import data_of, finished, recorded_environment
from gtp_experiments.results import RunResult
from gtp_policy import load_checkpoint
from gtp_policy.files import expanded, replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    episode: int = 0,
    row: int = 0,
    rollout: str | None = None,
    environment: str | None = None,
    device: str | None = None,
) -> Iterator[Path]:
    """Draws finished runs: learning curves of all, actions, flow and weights of each.

    Args:
        folders: The runs' folders.
        out: Folder of the pictures; made if it is not there.
        episode: Of the data, for advantages and weights, where there is a critic.
        row: Of the data, for the flow at its observation.
        rollout: ``"gif"`` or ``"mp4"``, to film an episode of each run, as it was evaluated.
        environment: Of the film; default the one of the evaluations, if gymnasium knows it.
        device: Where to compute; default: where each run did.

    Yields:
        The paths of the pictures.

    Raises:
        ExperimentError: If a run has not come to its end, its data has changed, or there is no such
            row or episode.

    Example:
        >>> from gtp_experiments import draw
        >>> next(draw(["nowhere"], "pictures"))
        Traceback (most recent call last):
        ...
        gtp_experiments.errors.ExperimentError: nowhere has no finished run: got no result.json, \
expected one. Run it to its end first.
    """
    out = expanded(out)
    runs = [(folder, *finished(folder)) for folder in map(expanded, folders)]
    out.mkdir(parents=True, exist_ok=True)
    groups: dict[str, list[RunResult]] = {}
    for _, result, config, _ in runs:
        groups.setdefault(f"{result.method} {config.group}", []).append(result)
    names = [name.rpartition(" ")[0] for name in groups]
    if len(set(names)) == len(names):  # the digest says nothing where names differ
        groups = dict(zip(names, groups.values(), strict=True))
    path = out / "learning.png"
    _save(plot_curves(groups), path)
    yield path
    for folder, result, config, newest in runs:
        moved = config.replace(device=device or config.device)  # pictures keep the run's name
        checkpoint = load_checkpoint(newest, train_state=False, device=moved.device)
        dataset = data_of(folder, result, moved, checkpoint).dataset
        learner = checkpoint.learner
        if not 0 <= row < len(dataset):
            raise ExperimentError(
                f"There is no such row: got {row}, expected 0 to {len(dataset) - 1}."
            )
        figures = {
            "actions": plot_actions(learner, dataset),
            "flow": plot_flow(learner, dataset.rows(row, row + 1).obs[0].cpu().numpy()),
        }
        if learner.critic is not None:
            figures["weights"] = plot_advantages(learner, dataset, episode=episode)
        for name, figure in figures.items():
            path = out / f"{config.name}_{name}.png"
            _save(figure, path)
            yield path
        if rollout is not None:
            named = environment or recorded_environment(folder, config)
            yield film(
                policy_of(learner, dataset, config.evaluation),
                dataset,
                named or environment_of(config),
                out / f"{config.name}.{rollout}",
                max_steps=config.evaluation.max_steps or 1000,
            )


def _save(figure: "Figure", path: Path) -> None:
    """Writes a picture as a whole; a link of its name is replaced, and what it leads to stays."""
    with replacing(path, ".png") as temporary:
        figure.savefig(temporary, dpi=120)
