"""Learners on disk: written whole or not at all, read only if every byte is right.

A checkpoint is a directory (or a zip file of it) with four files: ``config.json`` holds every
choice, ``weights.safetensors`` the networks and their target networks,
``train_state.safetensors`` the optimisers, ``manifest.json`` a SHA-256 of each. Numbers and strings
only: reading one executes nothing, imports nothing and builds no environment.
"""

import contextlib
import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from pydantic import JsonValue
from torch import nn

from gtp_policy._numbers import as_int
from gtp_policy._version import __version__
from gtp_policy.checkpoint import bundle
from gtp_policy.checkpoint.document import (
    DTYPES,
    config_of,
    files_of,
    fill_,
    read_document,
    read_state,
    saved_with,
    statistics_of,
)
from gtp_policy.config import GTPConfig
from gtp_policy.errors import CheckpointError, StateMismatchError, TrainingWarning
from gtp_policy.files import expanded, remove, target_of
from gtp_policy.functional import check_device, check_kind
from gtp_policy.learner import Disk, GTPLearner, OptimizerFactory, keep_on_
from gtp_policy.records import differences
from gtp_policy.spaces import ActionScaler, ObservationLayout

_OWN_NAME = re.compile("step_[0-9]{12}")
# How often a folder is listed again because something in it was removed meanwhile.
_MOST_LOOKS = 100


class CheckpointInfo(NamedTuple):
    """What a checkpoint says of itself, without its tensors.

    Attributes:
        config: Every choice of the learner.
        obs_dim: O.
        action_dim: A.
        updates: Number of updates done.
        action_scaler: Bounds of the action Box, where they were saved.
        layout: How observations become vectors, where it was saved.
        metadata: Whatever else was saved, as JSON values.
        sha256: Of the checkpoint's content, tensors included.
        normalized_by: What normalises observations before the policy sees them; None: nothing.

    Example:
        >>> import tempfile
        >>> from gtp_policy import GTPConfig, GTPLearner, read_metadata, save_checkpoint
        >>> learner = GTPLearner.build(3, 2, GTPConfig(critic=None))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_checkpoint(f"{folder}/a.zip", learner, metadata={"task": "toy"})
        ...     info = read_metadata(path)
        >>> info.obs_dim, info.updates, info.metadata
        (3, 0, {'task': 'toy'})
    """

    config: GTPConfig
    obs_dim: int
    action_dim: int
    updates: int
    action_scaler: ActionScaler | None
    layout: ObservationLayout | None
    metadata: dict[str, JsonValue]
    sha256: str
    normalized_by: str | None = None


class Checkpoint(NamedTuple):
    """A learner that came from a checkpoint, and what was saved with it.

    Attributes:
        learner: The learner, ready to act and to go on training.
        action_scaler: Bounds of the action Box, where they were saved.
        layout: How observations become vectors, where it was saved.
        metadata: Whatever else was saved, as JSON values.

    Example:
        >>> import tempfile
        >>> from gtp_policy import ActionScaler, GTPLearner, load_checkpoint, save_checkpoint
        >>> scaler = ActionScaler([-2.0, -2.0], [2.0, 2.0])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_checkpoint(f"{folder}/a", GTPLearner.build(3, 2), action_scaler=scaler)
        ...     load_checkpoint(path).action_scaler
        ActionScaler(low=[-2.0, -2.0], high=[2.0, 2.0])
    """

    learner: GTPLearner
    action_scaler: ActionScaler | None
    layout: ObservationLayout | None
    metadata: dict[str, JsonValue]


def save_checkpoint(
    path: str | Path,
    learner: GTPLearner,
    *,
    action_scaler: ActionScaler | None = None,
    layout: ObservationLayout | None = None,
    metadata: Mapping[str, JsonValue] | None = None,
) -> Path:
    """Saves a learner: networks, target networks, optimisers, counter and every choice.

    The files are written to a temporary place, flushed to the disk and renamed: whatever happens,
    a checkpoint is there as a whole or not at all.

    Args:
        path: A new directory; or a name that ends in ``.zip``, which replaces a file of that name.
            ``~`` is the home directory. A link of that name is replaced, not what it points to.
        learner: What to save.
        action_scaler: Bounds of the action Box, to act with the policy when it is loaded; default
            the learner's.
        layout: How observations become vectors, likewise.
        metadata: Anything else that JSON can hold.

    Returns:
        The path.

    Raises:
        CheckpointError: If it cannot be written (the disk is full, the directory exists), holds
            something that is neither tensor nor JSON, or could not be loaded again. What was there
            before is unchanged.
        NonFiniteError: If a weight is NaN or infinite.
        BrokenLearnerError: If an update of the learner ended half-way.

    Example:
        >>> import tempfile, torch
        >>> from gtp_policy import GTPLearner, load_checkpoint, save_checkpoint
        >>> learner, obs = GTPLearner.build(3, 2), torch.zeros(1, 3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_checkpoint(f"{folder}/policy.zip", learner)
        ...     loaded = load_checkpoint(path).learner
        >>> torch.equal(loaded.act(obs, deterministic=True), learner.act(obs, deterministic=True))
        True
    """
    path = _place(path)
    check_kind("learner", learner, GTPLearner)
    if not path.name:
        raise CheckpointError(
            f"Checkpoint {path} cannot be written: got a path without a name, expected that of a "
            "new folder or of a zip file."
        )
    files = files_of(learner, action_scaler, layout, metadata)
    bundle.write_bundle(path, files, written_by=f"gtp-policy {__version__}")
    return path


def load_checkpoint(
    path: str | Path,
    *,
    network: nn.Module | None = None,
    encoder: nn.Module | None = None,
    optimizer: OptimizerFactory | None = None,
    train_state: bool = True,
    device: torch.device | str = "cpu",
) -> Checkpoint:
    """Builds the learner that was saved, with the choices that were saved with it.

    Warns of a policy that learned from observations normalised elsewhere, as by ``VecNormalize``.

    Args:
        path: Directory or zip file.
        network: The actor's backbone, if it was a custom one: a file holds its parameters, not
            its code.
        encoder: The encoder, likewise.
        optimizer: The optimiser factory, if it was a custom one.
        train_state: Whether to load the optimisers' state. False leaves them new: to act, or to
            train on with other optimisers than those that were saved.
        device: Where parameters should live.

    Returns:
        The learner and what was saved with it.

    Raises:
        CheckpointError: If the file is missing, damaged, foreign or malicious; names file and
            reason.
        StateMismatchError: If ``network``, ``encoder`` or ``optimizer`` are not like those saved.

    Example:
        >>> import tempfile
        >>> from gtp_policy import GTPConfig, GTPLearner, load_checkpoint, save_checkpoint
        >>> learner = GTPLearner.build(3, 2, GTPConfig(critic=None))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_checkpoint(f"{folder}/a", learner)
        ...     load_checkpoint(path).learner.full_config == learner.full_config
        True
    """
    path = _place(path)
    check_device(device)
    document, weights, moments = read_state(path, encoder)
    for name, own, given in (
        ("network", document.own_network, network),
        ("encoder", document.own_encoder, encoder),
    ):
        if own != (given is not None):
            raise StateMismatchError(
                f"Checkpoint {path} was made {'with' if own else 'without'} a custom "
                f"`{name}`: got {type(given).__name__}, expected {'a module' if own else 'None'}."
            )
    # A curriculum that was not capped there is not capped here, of which `build` would warn. What
    # ignores a warning changes what all threads hear, and for good where two load at once.
    config = config_of(document)
    run, curriculum = config.learner, config.loss.curriculum
    fine = config.loss.replace(curriculum=curriculum.capped(run.total_updates, run.actor_rate))
    learner = GTPLearner.build(
        document.obs_dim,
        document.action_dim,
        config.replace(loss=fine),
        network=network,
        encoder=encoder,
        optimizer=optimizer,
        device=device,
    ).to(dtype=DTYPES[document.dtype])
    learner.loss.config = document.config.loss
    try:
        fill_(learner, path, document, weights, moments if train_state else None)
    except StateMismatchError as error:
        if network is not None or encoder is not None or optimizer is not None:
            raise
        # Nothing came from the caller: the file contradicts itself.
        raise CheckpointError(str(error)) from error
    learner.action_scaler, learner.layout, metadata = saved_with(document)
    if train_state and document.own_classes:
        said = " and ".join(f"a {n} {cls!r}" for n, cls in document.own_classes.items())
        warnings.warn(
            f"Checkpoint {path} was trained with {said}, which no file can describe: the "
            "learner has the package's. It acts the same; before it learns on, put yours in "
            "its place, or fill a learner that has them with restore_.",
            TrainingWarning,
            stacklevel=2,
        )
    if learner.normalized_by is not None:
        warnings.warn(
            f"The policy of {path} learned from observations that {learner.normalized_by} had "
            "normalised: it has to be given such, and acts wrongly on those of the environment. "
            "`normalized_by` of the learner says so, too.",
            stacklevel=2,
        )
    return Checkpoint(learner, learner.action_scaler, learner.layout, metadata)


def restore_(learner: GTPLearner, path: str | Path, *, train_state: bool = True) -> Checkpoint:
    """Puts an existing learner into the state that was saved, after comparing every choice.

    For learners that were built by other means than `GTPLearner.build`. Nothing is changed if an
    error is raised.

    Args:
        learner: A learner of the same dimensions and choices, with optimisers of the same kind.
        path: Directory or zip file.
        train_state: Whether to load the optimisers' state; False leaves them as they are.

    Returns:
        The learner itself and what was saved with it.

    Raises:
        CheckpointError: If the file is missing, damaged, foreign or malicious.
        StateMismatchError: If the learner's choices are not those that were saved; names them.

    Example:
        >>> import tempfile
        >>> from gtp_policy import GTPConfig, GTPLearner, restore_, save_checkpoint
        >>> learner = GTPLearner.build(3, 2, GTPConfig(critic=None))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_checkpoint(f"{folder}/a", learner)
        ...     restore_(learner, path).learner is learner
        True
    """
    path = _place(path)
    check_kind("learner", learner, GTPLearner)
    document, weights, moments = read_state(path)
    own = {
        "obs_dim": learner.actor.obs_dim,
        "action_dim": learner.actor.action_dim,
        "config": learner.open_config.model_dump(mode="json"),
    }
    saved = {
        "obs_dim": document.obs_dim,
        "action_dim": document.action_dim,
        "config": document.config.model_dump(mode="json"),
    }
    differing = [f"{k}: {a!s:.60} there, {b!s:.60} here" for k, a, b in differences(saved, own)]
    if differing:
        # To build the learner of a clone again would lead back to a clone.
        advice = "Build the learner from read_metadata(path).config."
        if document.config.critic is None and learner.critic is not None:
            advice = (
                "To go on from a cloned actor with a critic, take "
                "GTPLearner.from_actor(load_checkpoint(path).learner, config), or from_actor of "
                "the host."
            )
        raise StateMismatchError(
            f"Checkpoint {path} belongs to a learner with other choices: got "
            f"{'; '.join(differing[:9])}, expected the same. {advice}"
        )
    fill_(learner, path, document, weights, moments if train_state else None)
    scaler, layout, metadata = saved_with(document)
    learner.action_scaler = learner.action_scaler if scaler is None else scaler
    learner.layout = learner.layout if layout is None else layout
    return Checkpoint(learner, scaler, layout, metadata)


def read_metadata(path: str | Path, *, encoder: nn.Module | None = None) -> CheckpointInfo:
    """Reads what a checkpoint says of itself; its tensors are not read.

    Their length is looked at: networks that are built from ``config`` are no larger than the file.

    Args:
        path: Directory or zip file.
        encoder: The encoder, if it was a custom one, on any device, "meta" included: it and the
            number of its features then count as parts of the networks.

    Returns:
        Choices, dimensions, counter, and what was saved with the learner.

    Raises:
        CheckpointError: If manifest or config are missing, damaged, foreign or malicious.

    Example:
        >>> import tempfile
        >>> from gtp_policy import GTPLearner, read_metadata, save_checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     read_metadata(save_checkpoint(f"{folder}/a", GTPLearner.build(3, 2))).action_dim
        2
    """
    path = _place(path)
    document, content = read_document(path, encoder)
    scaler, layout, metadata = saved_with(document)
    return CheckpointInfo(
        config=document.config,
        obs_dim=document.obs_dim,
        action_dim=document.action_dim,
        updates=document.updates,
        action_scaler=scaler,
        layout=layout,
        metadata=metadata,
        sha256=content,
        normalized_by=document.normalized_by,
    )


def latest_valid(directory: str | Path) -> Path | None:
    """Finds the checkpoint with the most updates whose every byte is right.

    Damaged and unreadable ones are skipped with a warning; other files and unfinished writes are
    not looked at. Whatever number of updates a file claims, it is believed: for the folder of a run
    take `CheckpointFolder.latest`, which knows its own.

    Args:
        directory: A folder with checkpoints, directories or zip files of any name.

    Returns:
        Its path; None if there is none, or no such folder.

    Raises:
        CheckpointError: If the folder cannot be listed.

    Example:
        >>> import tempfile
        >>> from gtp_policy import GTPLearner, latest_valid, save_checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_checkpoint(f"{folder}/first", GTPLearner.build(3, 2))
        ...     latest_valid(folder).name
        'first'
    """
    return _newest(_place(directory, "directory"), _looks_like_one)


def _newest(directory: Path, is_candidate: Callable[[Path], bool]) -> Path | None:
    """Returns the candidate with the most updates whose every byte is right."""
    for _ in range(_MOST_LOOKS):
        paths = [directory / n for n in _names_in(directory) if target_of(n) is None]
        found: list[tuple[int, float, Path]] = []
        for path in paths:
            try:
                if is_candidate(path):
                    found.append((read_document(path)[0].updates, path.stat().st_mtime, path))
            except OSError as error:  # a CheckpointError is one
                _skip(path, error)
        for _, _, path in sorted(found, reverse=True):
            try:
                read_state(path)
            except CheckpointError as error:
                _skip(path, error)
            else:
                return path
        # A writer publishes the new one before it removes the old one: what is gone since it was
        # listed has a successor that was not there yet.
        if all(map(os.path.lexists, paths)):
            return None
    return None


def _names_in(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # also what is no name at all
        return []
    except OSError as error:
        raise CheckpointError(
            f"The checkpoints in {directory} cannot be listed: got {error.strerror}, expected a "
            "folder that this process may read."
        ) from error


def _skip(path: Path, error: Exception) -> None:
    """Warns of a candidate that is passed over, unless it is gone."""
    if os.path.lexists(path):
        warnings.warn(f"{bundle.unreadable(path, error)} It is skipped.", stacklevel=4)


class CheckpointFolder:
    """The checkpoints of one run in one folder, named by the number of updates.

    One process writes to a folder, any number may read. What is not certainly of the run that is
    saved is never replaced nor removed: a checkpoint of other choices, dimensions or observations,
    known by their mean and scale, or of a later version, and anything that cannot be read. Two runs
    that these do not tell apart need two folders.

    Args:
        directory: The folder; made by the first `save`.
        keep: How many of the newest of a run to keep; None keeps all. Those of other runs do not
            count, and stay.

    Raises:
        ValueError: If ``keep`` is smaller than 1.

    Example:
        >>> import tempfile
        >>> from gtp_policy import CheckpointFolder, GTPConfig, GTPLearner, load_checkpoint
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     folder = CheckpointFolder(directory, keep=3)
        ...     _ = folder.save(GTPLearner.build(3, 2, GTPConfig(critic=None)))
        ...     folder.latest().name
        'step_000000000000'
    """

    def __init__(self, directory: str | Path, *, keep: int | None = None) -> None:
        kept = as_int(keep)
        if keep is not None and (kept is None or kept < 1):
            raise ValueError(
                f"`keep` is out of range: got {keep!r}, expected an integer >= 1, or None."
            )
        self.directory, self.keep = _place(directory, "directory"), kept

    def save(
        self,
        learner: GTPLearner,
        *,
        action_scaler: ActionScaler | None = None,
        layout: ObservationLayout | None = None,
        metadata: Mapping[str, JsonValue] | None = None,
    ) -> Path:
        """Saves a learner under its number of updates; removes what an aborted write left behind.

        Saving the same content again does nothing: a resumed run may pass where it was before. One
        of this run that is damaged is replaced, once the new one is written.

        Args:
            learner: What to save.
            action_scaler: Bounds of the action Box; default the learner's.
            layout: How observations become vectors, likewise.
            metadata: Anything else that JSON can hold.

        Returns:
            The path of the checkpoint.

        Raises:
            CheckpointError: If it cannot be written, or something else of that name is there: a
                valid checkpoint with the same number of updates and other content, one of another
                run, or what cannot be read. It stays as it is.
        """
        check_kind("learner", learner, GTPLearner)
        path = self.directory / f"step_{learner.updates:012d}"
        files = files_of(learner, action_scaler, layout, metadata)
        for name in _names_in(self.directory):
            if _OWN_NAME.fullmatch(target_of(name) or ""):
                remove(self.directory / name)
        is_there = os.path.lexists(path)
        if is_there:
            if _loads(path):
                if bundle.content_id(path) == bundle.content_id_of(files):
                    return path
                raise CheckpointError(
                    f"Checkpoint {path} belongs to another run: got other content for update "
                    f"{learner.updates}, expected the same. Choose another folder for this run."
                )
            _check_is_of_run(path, learner)
        bundle.write_bundle(path, files, written_by=f"gtp-policy {__version__}", replaces=is_there)
        if self.keep is not None:
            self._remove_but(self.keep, path, learner)
        return path

    def latest(self) -> Path | None:
        """Returns the newest valid one of the checkpoints that `save` wrote, or None.

        Files of other names are not looked at, whatever number of updates they claim.

        Raises:
            CheckpointError: If the folder cannot be listed.
        """
        return _newest(self.directory, self._is_own)

    def _is_own(self, path: Path) -> bool:
        return (
            _OWN_NAME.fullmatch(path.name) is not None
            and _looks_like_one(path)
            and read_document(path, whole=False)[0].updates == int(path.name.removeprefix("step_"))
        )

    def _remove_but(self, keep: int, newest: Path, learner: GTPLearner) -> None:
        """Removes older checkpoints of a run, once as many as are to be kept can be loaded."""
        kept = 1  # what was written last was read again before
        # Higher numbers are not of this run, and no reason to remove what it has just written.
        for path in sorted(self.directory.glob("step_" + "[0-9]" * 12), reverse=True):
            if path.name >= newest.name:
                continue
            with contextlib.suppress(CheckpointError):
                whole = _check_is_of_run(path, learner)
                if kept >= keep:
                    bundle.discard(path)
                elif whole:  # a damaged one is not one that is kept
                    kept += 1


def _loads(path: Path) -> bool:
    try:
        read_state(path)
    except CheckpointError:
        return False
    return True


def _check_is_of_run(path: Path, learner: GTPLearner) -> bool:
    """Raises unless a checkpoint says that it is of a learner's run; returns whether it is whole.

    The length of a run may change on the way, and the curriculum with it; other choices do not, nor
    do the statistics of the data.
    """

    def run_of(obs_dim: int, action_dim: int, config: GTPConfig) -> tuple[object, ...]:
        choices = config.model_dump(mode="json")
        del choices["learner"]["total_updates"], choices["loss"]["curriculum"]
        return obs_dim, action_dim, choices

    advice = "It stays as it is: move it away, or choose another folder for this run."
    try:
        there, _ = read_document(path, whole=False)  # what a crash left is the run's, too
    except CheckpointError as error:
        raise CheckpointError(f"{error} {advice}") from error
    here = learner.actor.obs_dim, learner.actor.action_dim, learner.open_config
    if run_of(there.obs_dim, there.action_dim, there.config) != run_of(*here):
        raise CheckpointError(
            f"Checkpoint {path} belongs to another run: got other choices, expected this run's. "
            f"{advice}"
        )
    statistics, whole = there.statistics, True
    try:
        _, weights, _ = read_state(path)
        statistics = statistics_of(weights)  # files of before version 0.1 do not say it
    except CheckpointError:
        whole = False
    if statistics != statistics_of(learner.actor.state_dict(prefix="actor.")):
        what = "of another mean or scale" if statistics else "of a mean that cannot be read"
        raise CheckpointError(
            f"Checkpoint {path} belongs to another run: got observations {what}, expected this "
            f"run's. {advice}"
        )
    return whole


def _place(path: object, name: str = "path") -> Path:
    check_kind(name, path, str, os.PathLike)
    return expanded(cast(str, path))


def _looks_like_one(path: Path) -> bool:
    if path.suffix == ".zip" and path.is_file():
        return True
    try:
        os.lstat(path / bundle.MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _load(path: str | Path, **options: Any) -> GTPLearner:  # noqa: ANN401 - those of load_checkpoint
    return load_checkpoint(path, **options).learner


keep_on_(Disk(save_checkpoint, _load))
