"""Policies as repositories of the Hugging Face Hub, or as folders of the same files.

A repository has the checkpoint, from which training goes on; the ONNX file, which runs without this
package; and a card that says what both are. Tensors, JSON and text: loading executes nothing.
"""

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gtp_policy._version import __version__
from gtp_policy.checkpoint import Checkpoint, load_checkpoint, read_metadata, save_checkpoint
from gtp_policy.checkpoint.bundle import content_id
from gtp_policy.errors import (
    CheckpointError,
    DataError,
    ExportError,
    GTPError,
    MissingDependencyError,
    how_to_install,
)
from gtp_policy.export.files import export_onnx
from gtp_policy.export.policy_file import PolicyFile
from gtp_policy.export.source import source_of
from gtp_policy.files import expanded, replacing_together
from gtp_policy.learner import GTPLearner, OptimizerFactory
from gtp_policy.records import decode
from gtp_policy.spaces import ActionScaler, ObservationLayout

CHECKPOINT, ONNX, CARD = "checkpoint.zip", "policy.onnx", "README.md"
# A result with a thousand evaluations of a hundred episodes has some 6 million.
_MOST = 2**24


def save_pretrained(
    policy: GTPLearner | Checkpoint | str | Path,
    folder: str | Path,
    *,
    action_scaler: ActionScaler | None = None,
    layout: ObservationLayout | None = None,
    result: str | Path | Mapping[str, Any] | None = None,
    command: str | None = None,
    license: str | None = None,
    onnx: bool = True,
) -> Path:
    """Writes a policy as the files of a repository.

    They are made first and put in their places together: if one cannot be, those of an earlier
    policy stay, all of them.

    Args:
        policy: A learner, the path of a checkpoint, or what `load_checkpoint` returned.
        folder: Where to write; files of these names are replaced, or removed with ``onnx=False``.
        action_scaler: Bounds of the action Box; default the policy's own.
        layout: How observations become vectors; default the policy's own.
        result: Of the run that made it: ``result.json`` of `gtp_experiments`, its path or its
            content. The card takes data, hash, scores, choices and versions from it.
        command: The command that made it, for the card.
        license: For the card, e.g. ``"mit"``.
        onnx: Whether to write the ONNX file; False for networks that cannot be exported.

    Returns:
        The folder.

    Raises:
        CheckpointError: If it cannot be written, or a path is no checkpoint's.
        DataError: If ``result`` is no result of a run.
        ExportError: If the policy is none of these, or cannot be exported.
        MissingDependencyError: If huggingface_hub, or for the ONNX file onnx, is not installed.

    Example:
        >>> import tempfile
        >>> from gtp_policy import GTPConfig, GTPLearner
        >>> from gtp_policy.export import from_pretrained, save_pretrained
        >>> learner = GTPLearner.build(3, 2, GTPConfig(critic=None))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_pretrained(learner, folder, onnx=False)
        ...     from_pretrained(folder).learner.actor.action_dim
        2
    """
    folder = expanded(folder)
    given = load_checkpoint(policy) if isinstance(policy, str | Path) else policy
    if isinstance(given, GTPLearner):
        given = Checkpoint(given, given.action_scaler, given.layout, {})
    if not isinstance(given, Checkpoint):
        raise ExportError(
            f"There is no policy to save: got {type(policy).__name__}, expected a GTPLearner, a "
            "checkpoint or its path. Of a model of gtp_sb3 or gtp_tianshou, give the path that it "
            "was saved to."
        )
    given = given._replace(
        action_scaler=action_scaler or given.action_scaler, layout=layout or given.layout
    )
    record = _read(result) if result is not None else None
    try:
        places = folder / CHECKPOINT, folder / ONNX, folder / CARD
        with replacing_together(*places) as (checkpoint, graph, text):
            save_checkpoint(
                checkpoint,
                given.learner,
                action_scaler=given.action_scaler,
                layout=given.layout,
                metadata=given.metadata,
            )
            file = None
            if onnx:
                # Not from what was written: it lacks an encoder of the user's own. With its hash.
                source = source_of(given)._replace(sha256=content_id(checkpoint))
                file = export_onnx(source, graph)
            card = model_card(
                checkpoint, file=file, record=record, command=command, license=license
            )
            text.write_text(card, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        if isinstance(error, GTPError):
            raise
        raise CheckpointError(
            f"{folder} cannot be written: got {error}, expected a writable place. What was there "
            "before is unchanged."
        ) from error
    return folder


def from_pretrained(
    name: str | Path,
    *,
    revision: str | None = None,
    network: nn.Module | None = None,
    encoder: nn.Module | None = None,
    optimizer: OptimizerFactory | None = None,
    device: torch.device | str = "cpu",
    **download: Any,  # noqa: ANN401 - whatever huggingface_hub takes
) -> Checkpoint:
    """Loads a policy from a folder or from the Hub; a file is checked as any checkpoint is.

    Args:
        name: A folder that `save_pretrained` wrote, or a repository: ``"owner/name"``.
        revision: Branch, tag or commit. Only a commit's hash names the same bytes for ever.
        network: As for `load_checkpoint`.
        encoder: As for `load_checkpoint`.
        optimizer: As for `load_checkpoint`.
        device: As for `load_checkpoint`.
        **download: For ``huggingface_hub.hf_hub_download``: ``token``, ``cache_dir``,
            ``local_files_only``, ``endpoint``.

    Returns:
        The learner and what was saved with it.

    Raises:
        CheckpointError: If there is no such repository or file, or it is damaged or malicious.
        StateMismatchError: If ``network``, ``encoder`` or ``optimizer`` are not like those saved.
        MissingDependencyError: If the Hub is needed and huggingface_hub is not installed.

    Example:
        >>> from gtp_policy.export import from_pretrained
        >>> from_pretrained("no/such/name")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        gtp_policy.errors.CheckpointError: no/such/name cannot be loaded: got HFValidationError ...
    """
    path = expanded(name) / CHECKPOINT
    if not os.path.isdir(path.parent):
        hub = _hub()
        try:
            found = hub.hf_hub_download(str(name), CHECKPOINT, revision=revision, **download)
        except Exception as error:  # of the Hub, of the network, of the name
            raise CheckpointError(
                f"{name} cannot be loaded: got {type(error).__name__} ({error}), expected a folder "
                f"or a repository of the Hub with {CHECKPOINT}."
            ) from error
        path = Path(found)
    return load_checkpoint(
        path, network=network, encoder=encoder, optimizer=optimizer, device=device
    )


def push_to_hub(
    policy: GTPLearner | Checkpoint | str | Path,
    name: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    message: str = "Add a policy of gtp-policy",
    **files: Any,  # noqa: ANN401 - as for save_pretrained
) -> str:
    """Writes a policy into a repository of the Hub, made if need be, as one commit.

    Args:
        policy: A learner, the path of a checkpoint, or what `load_checkpoint` returned.
        name: The repository, ``"owner/name"``.
        private: Whether a new repository is private; default the owner's setting.
        token: Default that of ``hf auth login``.
        endpoint: Default the Hub's own.
        message: Of the commit.
        **files: For `save_pretrained`.

    Returns:
        The address of the commit.

    Raises:
        MissingDependencyError: If huggingface_hub is not installed.
        huggingface_hub.errors.HfHubHTTPError: If the Hub refuses.

    Example:
        >>> from gtp_policy import GTPConfig, GTPLearner
        >>> from gtp_policy.export import push_to_hub
        >>> learner = GTPLearner.build(3, 2, GTPConfig(critic=None))
        >>> push_to_hub(learner, "no/such/name", onnx=False)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        huggingface_hub.errors.HFValidationError: ...
    """
    api = _hub().HfApi(endpoint=endpoint, token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(policy, folder, **files)  # first: what cannot be written makes nothing
        api.create_repo(name, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message=message,
            # That of an earlier policy.
            delete_patterns=None if Path(folder, ONNX).exists() else ONNX,
        )
    return str(commit.commit_url)


def model_card(
    checkpoint: str | Path,
    *,
    file: PolicyFile | None = None,
    record: Mapping[str, Any] | None = None,
    command: str | None = None,
    license: str | None = None,
) -> str:
    """Returns the card of a policy: what it is, what it was made from, how well it does.

    Args:
        checkpoint: Its checkpoint.
        file: What its ONNX file says of itself.
        record: The content of ``result.json`` of its run.
        command: The command that made it.
        license: Its license.

    Returns:
        Markdown with the Hub's metadata at its head.

    Raises:
        CheckpointError: If the checkpoint cannot be read.
        DataError: If the record is no result of a run.
        MissingDependencyError: If huggingface_hub is not installed.

    Example:
        >>> import tempfile
        >>> from gtp_policy import GTPConfig, GTPLearner, save_checkpoint
        >>> from gtp_policy.export import model_card
        >>> learner = GTPLearner.build(3, 2, GTPConfig(critic=None))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     card = model_card(save_checkpoint(f"{folder}/a.zip", learner))
        >>> "| observation | 3 numbers |" in card
        True
    """
    hub, info = _hub(), read_metadata(checkpoint)
    data = hub.ModelCardData(
        license=license,
        library_name="gtp-policy",
        pipeline_tag="reinforcement-learning",
        tags=["offline-reinforcement-learning", "flow-map", "gtp-policy"],
    )
    actor = info.config.actor
    rows = {
        "observation": info.layout or f"{info.obs_dim} numbers",
        "action": info.action_scaler or f"{info.action_dim} numbers in [-1, 1]",
        "updates": info.updates,
        "jumps per action": actor.steps,
        "hidden layers": " ".join(map(str, actor.hidden)),
        "critic": "none: a clone of the data" if info.config.critic is None else "yes",
        "gtp-policy": __version__,
        "SHA-256 of the checkpoint's content": content_id(expanded(checkpoint)),
    }
    if info.normalized_by is not None:
        rows["observations are normalised by"] = f"{info.normalized_by}, before the policy"
    if file is not None:
        jumps, candidates = (
            f"{count} {name}{'s' * (count > 1)}"
            for count, name in ((file.steps, "jump"), (file.candidates, "candidate"))
        )
        rows["ONNX file"] = f"{jumps}, {candidates}, opset {file.opset}"
    parts = ["# A policy of gtp-policy", _table(rows)]
    if record is not None:
        parts += ["## The run", _table(_facts(record))]
    if command is not None:
        parts += ["## The command", f"```bash\n{command}\n```"]
    parts += [
        "## Use it",
        "```python\nfrom gtp_policy.export import from_pretrained\n\n"
        'learner, scaler, layout, _ = from_pretrained(".")  # this folder, or "owner/name"\n'
        "action = learner.act(obs, deterministic=True)  # in [-1, 1]\n```",
    ]
    if file is not None:
        parts.append(f"Or run `{ONNX}` with any ONNX runtime; it takes and gives real units.")
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def _facts(record: Mapping[str, Any]) -> dict[str, object]:
    """Returns what a result says of its run, in words."""
    try:
        facts: dict[str, object] = {
            "method": record["method"],
            "data": f"{record['dataset']} {record.get('data_note', '')}".strip(),
            "SHA-256 of the data": record["data_sha256"] or "not known",
            "seed": record["seed"],
            "status": record["status"],
        }
        if record.get("task"):
            facts["task"] = record["task"]
        if record["evaluations"]:
            last = record["evaluations"][-1]
            returns = [float(r) for r in last["returns"]]
            mean = math.fsum(returns) / len(returns)
            facts["return at the end"] = (
                f"{mean:.4g}, mean of {len(returns)} episodes after {last['update']} updates"
            )
            if last.get("success"):
                share = sum(map(float, last["success"])) / len(last["success"])
                facts["success at the end"] = f"{100 * share:.1f} %"
            if scale := record.get("reference"):
                facts["scale"] = f"0 is {scale['min']}, 100 is {scale['max']} ({scale['source']})"
        facts |= {f"made with {k}": v for k, v in record["provenance"].items()}
        facts["choices"] = json.dumps(record["config"], sort_keys=True)
    except (
        ArithmeticError,
        AttributeError,
        KeyError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise DataError(
            f"`result` is no result of a run: got {type(error).__name__} ({error}), expected the "
            "content of a result.json that gtp_experiments wrote."
        ) from error
    return facts


def _table(rows: Mapping[str, object]) -> str:
    lines = ["| | |", "|---|---|"]
    for name, value in rows.items():
        lines.append(f"| {_cell(name)} | {_cell(value)} |")
    return "\n".join(lines)


def _cell(value: object) -> str:
    """Returns text of others so that it does not end the cell or become HTML."""
    return " ".join(str(value).splitlines()).replace("|", "\\|").replace("<", "&lt;")


def _read(result: str | Path | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(result, Mapping):
        return result
    try:
        path = expanded(result)
        if path.exists() and not path.is_file():  # a pipe would wait for its writer
            raise ValueError("something else than a file")
        with open(path, encoding="utf-8") as file:
            text = file.read(_MOST + 1)
        if len(text) > _MOST:
            raise ValueError(f"more than {_MOST} characters")
        found = decode(text)
        if not isinstance(found, Mapping):
            raise ValueError(f"{type(found).__name__} instead of an object")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{result} is no result of a run: got {error}, expected a result.json that "
            "gtp_experiments wrote."
        ) from error
    return found


def _hub() -> Any:  # noqa: ANN401 - a module
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingDependencyError(
            "The Hub needs huggingface_hub: got none, expected it to be installed. "
            + how_to_install("hub")
        ) from error
    return huggingface_hub
