"""Exported policies as files: made, tried against the policy, and only then put in their place."""

import contextlib
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gtp_policy._contexts import outside
from gtp_policy._numbers import as_int
from gtp_policy._version import __version__
from gtp_policy.acting import Choice, margin_of_mode
from gtp_policy.errors import ExportError, MissingDependencyError, PolicyFileError, how_to_install
from gtp_policy.export.opset import ACTION, IR_VERSION, NOISE, OPSET, Precision
from gtp_policy.export.policy_file import (
    PROPERTY,
    ActionPlayback,
    ActionSpace,
    CheckpointOrigin,
    NoiseInput,
    ObservationPart,
    ObservationSpace,
    PolicyFile,
)
from gtp_policy.export.properties import read_property
from gtp_policy.export.source import (
    Exportable,
    ObservationFacts,
    Plan,
    PolicyModule,
    source_of,
)
from gtp_policy.files import expanded, replacing, stored_bytes
from gtp_policy.spaces import ActionScaler, ObservationLayout

Noise = Literal["input", "keyed", "seeded"]
_Outputs = Callable[[Sequence[Tensor]], npt.NDArray[np.float32]]
# How far an exported action may be from the policy's, in [-1, 1]: rounding of float32 and, ten bits
# less, of float16 through all layers and jumps.
_TOLERANCE: dict[Precision, float] = {"float32": 1e-4, "float16": 0.1}
_ROWS = 1, 2, 33
_SEEDS = 2**24
_LONGEST, _MOST_HOLES = 2**31, 2**26  # bytes of a file
# Each jump is in the graph on its own: of the default network these take seconds, and torch takes
# as long for far fewer.
_MOST_JUMPS, _MOST_TRACED = 1_000, 32


def export_onnx(
    policy: Exportable,
    path: str | Path,
    *,
    steps: int | None = None,
    candidates: int | None = None,
    choice: Choice | None = None,
    noise: Noise = "input",
    seed: int | None = None,
    precision: Precision = "float32",
    layout: ObservationLayout | None = None,
    action_scaler: ActionScaler | None = None,
) -> PolicyFile:
    """Writes a policy as one ONNX file that any ONNX runtime runs, without torch.

    The file takes observations and gives actions in the units of the environment; the page on the
    policy file in the reference says all that a reader has to know. It is checked, run and compared
    with the policy before it is put in its place, which it then takes in one step.

    Args:
        policy: A learner, an actor, a loaded checkpoint or the path of one; or a policy, algorithm
            or model of ``gtp_sb3`` or ``gtp_tianshou``.
        path: Where to write; a file or link that is there is replaced. ``~`` is the home directory.
        steps: K; default the policy's.
        candidates: n, actions per observation of which the critic chooses one; default as the
            policy is evaluated: one, or as many as its learner takes the mode of.
        choice: Replaces a choice by chance, which no file can hold, by `ArgmaxChoice`.
        noise: ``"input"``: the caller gives it. ``"keyed"``: that of deterministic actions, a
            function of the observation, inside. ``"seeded"``: drawn inside by the runtime.
        seed: Of ``"seeded"`` noise, below 2^24; default 0.
        precision: ``"float16"`` halves the flow map's network and rounds its products to 11 bits:
            up to about 1e-3 of an action's range. Only for default networks.
        layout: How observations become vectors; default the policy's own, else vectors.
        action_scaler: Bounds of the action Box; default the policy's own, else [-1, 1].

    Returns:
        What the file says of itself.

    Raises:
        ExportError: If there is no such policy, the file does not act as it does, or cannot be
            written.
        CheckpointError: If a checkpoint cannot be read.
        DataError: If a parameter is not finite.
        MissingDependencyError: If onnx, or for a network of your own onnxscript, is not installed.

    Example:
        >>> import tempfile
        >>> from gtp_policy import ActionScaler, FlowMapActor
        >>> from gtp_policy.export import export_onnx
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = export_onnx(FlowMapActor(3, 1), f"{folder}/policy.onnx", steps=2,
        ...                        action_scaler=ActionScaler([-2.0], [2.0]))
        >>> file.steps, file.action.high, file.noise.shape
        (2, (2.0,), (1,))
    """
    onnx = _onnx()
    _check_options(noise, seed, precision)
    from gtp_policy.export import graph, noises  # they need onnx

    with _plainly():
        plan = _plan(policy, steps, candidates, choice, layout, action_scaler)
        _check_jumps(plan, _MOST_JUMPS)
        document = _document(plan, noise, seed, precision)
        model = graph.default_graph(plan, precision)
    if model is None and precision != "float32":
        raise ExportError(
            f"This policy cannot be exported in {precision}: got a network, an encoder or a "
            "sampler that is not the default one, expected the default ones. Take "
            "precision='float32'."
        )
    if model is None:
        with torch.autocast("cpu", enabled=False):
            model = _by_torch(plan)
    with _plainly():
        _compare(plan, _session(model, [*plan.inputs, NOISE]), precision)
        noises.replace_(model, plan, document.noise)
        model.producer_name, model.producer_version = "gtp-policy", __version__
        onnx.helper.set_model_props(model, {PROPERTY: document.model_dump_json()})
        onnx.checker.check_model(model, full_check=True)
        if noise != "input":
            _check_ranges(plan, _session(model, plan.inputs))
    _write(expanded(path), model.SerializeToString(deterministic=True))
    return document


def read_policy_file(path: str | Path) -> PolicyFile:
    """Reads what an exported ONNX file says of itself; nothing of it is run.

    The graph is neither read nor checked: what acts on the file does that, as `gtp_runtime` does
    before anything else.

    Args:
        path: The file.

    Returns:
        The document.

    Raises:
        PolicyFileError: If it is no policy file, or one of a later format.

    Example:
        >>> import tempfile
        >>> from gtp_policy import FlowMapActor
        >>> from gtp_policy.export import export_onnx, read_policy_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written = export_onnx(FlowMapActor(3, 2), f"{folder}/policy.onnx")
        ...     read_policy_file(f"{folder}/policy.onnx") == written
        True
    """
    try:
        place = expanded(path)
        if place.exists() and not place.is_file():  # a pipe would wait for its writer
            raise ValueError("something else than a file")
        with open(place, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            # More than any message of protocol buffers has, or a hole, would fill the memory first.
            if size > _LONGEST or size - stored_bytes(file.fileno()) > _MOST_HOLES:
                raise ValueError(f"{size} bytes, more than a model has, or than are on the disk")
            found = read_property(file, PROPERTY)
            text = None if found is None else found.decode()
    except (OSError, ValueError) as error:
        raise PolicyFileError(
            f"Policy file {path} cannot be read: got {error}, expected an ONNX file that "
            "export_onnx wrote."
        ) from error
    if text is None:
        raise PolicyFileError(
            f"{path} is no policy file: got no metadata `{PROPERTY}`, expected an ONNX file that "
            "export_onnx wrote."
        )
    return PolicyFile.from_json(text)


def export_torch(
    policy: Exportable,
    path: str | Path,
    *,
    steps: int | None = None,
    candidates: int | None = None,
    choice: Choice | None = None,
    layout: ObservationLayout | None = None,
    action_scaler: ActionScaler | None = None,
    compiled: bool = False,
) -> PolicyFile:
    """Writes a policy for torch itself: as a program of `torch.export`, or compiled from it.

    Inputs and output are those of the ONNX file. Load a program by ``torch.export.load(path)``,
    whose ``module()`` is called with the parts of the observation and the noise; a compiled one by
    ``torch._inductor.aoti_load_package(path)``, in C++ by ``AOTIModelPackageLoader``. Both are
    code: load none that you do not trust. What the file says of itself stands in a program's extra
    file ``gtp_policy.json``.

    Args:
        policy: As for `export_onnx`.
        path: Where to write; a program ends in ``.pt2`` by convention.
        steps: As for `export_onnx`.
        candidates: As for `export_onnx`.
        choice: As for `export_onnx`.
        layout: As for `export_onnx`.
        action_scaler: As for `export_onnx`.
        compiled: Whether AOTInductor compiles it, for this machine's processor; needs a compiler of
            C++.

    Returns:
        What `export_onnx` would write into its file.

    Raises:
        ExportError: If there is no such policy, torch cannot export or compile it, or the result
            does not act as it does.
        CheckpointError: If a checkpoint cannot be read.
        DataError: If a parameter is not finite.

    Example:
        >>> import tempfile, torch
        >>> from gtp_policy import FlowMapActor
        >>> from gtp_policy.export import export_torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = export_torch(FlowMapActor(3, 2), f"{folder}/policy.pt2", steps=1)
        ...     policy = torch.export.load(f"{folder}/policy.pt2").module()
        >>> policy(torch.zeros(4, 3), torch.ones(4, 2)).shape
        torch.Size([4, 2])
    """
    path = expanded(path)
    with _plainly():
        plan = _plan(policy, steps, candidates, choice, layout, action_scaler)
        document = _document(plan, "input", None, "float32")
    with torch.autocast("cpu", enabled=False):
        program = _program(plan)
    try:
        # Torch writes a program only under a name that ends in this.
        with replacing(path, ".pt2") as temporary:
            if compiled:
                run = _compiled(program, temporary)
            else:
                extra = {f"{PROPERTY}.json": document.model_dump_json()}
                torch.export.save(program, temporary, extra_files=extra)
                run = torch.export.load(temporary).module()
            with _plainly():
                _compare(plan, lambda inputs: run(*inputs).numpy(), "float32")
    except OSError as error:
        raise _unwritable(path, error) from error
    return document


def _plan(
    policy: Exportable,
    steps: int | None,
    candidates: int | None,
    choice: Choice | None,
    layout: ObservationLayout | None,
    action_scaler: ActionScaler | None,
) -> Plan:
    return Plan(
        source_of(policy),
        steps=steps,
        candidates=candidates,
        choice=choice,
        layout=layout,
        action_scaler=action_scaler,
    )


def _check_options(noise: Noise, seed: int | None, precision: Precision) -> None:
    for name, value, known in (
        ("noise", noise, get_args(Noise)),
        ("precision", precision, get_args(Precision)),
    ):
        if value not in known:
            raise ExportError(f"Unknown `{name}`: got {value!r}, expected one of {list(known)}.")
    if seed is not None and noise != "seeded":
        raise ExportError(
            f"A seed belongs to noise that the file draws: got seed={seed} and noise={noise!r}, "
            "expected noise='seeded'. Else it is the caller's, or a function of the observation."
        )
    number = as_int(seed)
    if seed is not None and (number is None or not 0 <= number < _SEEDS):
        raise ExportError(
            f"`seed` is out of range: got {seed!r}, expected an integer from 0 below {_SEEDS}: "
            "ONNX holds it as a float32, which has no others exactly."
        )


def _document(plan: Plan, noise: Noise, seed: int | None, precision: Precision) -> PolicyFile:
    (low, high), parts, playback = plan.box, [], None
    if plan.playback is not None and plan.playback.every is not None:
        playback = ActionPlayback(every=plan.playback.every, ensemble=plan.playback.ensemble)
    for key, name, shape in zip(plan.keys, plan.inputs, plan.layout.shapes, strict=True):
        facts = plan.source.observations.get(key, ObservationFacts())
        parts.append(
            ObservationPart(
                input=name,
                key=key if plan.layout.keys else None,
                shape=shape,
                dtype=facts.dtype,
                low=_finite(facts.low),
                high=_finite(facts.high),
            )
        )
    return PolicyFile(
        # Readers of version 1 would play the whole chunk.
        format_version=1 if playback is None else 2,
        package_version=__version__,
        kind="policy",
        opset=OPSET,
        precision=precision,
        steps=plan.steps,
        candidates=plan.candidates,
        observation=ObservationSpace(
            kind="dict" if plan.layout.keys else "box", parts=tuple(parts), history=plan.history
        ),
        action=ActionSpace(
            output=ACTION,
            shape=plan.action_shape,
            dtype="float32",
            low=tuple(low.tolist()),
            high=tuple(high.tolist()),
            chunk=plan.chunk,
            playback=playback,
        ),
        noise=NoiseInput(
            source=noise,
            input=NOISE if noise == "input" else None,
            shape=plan.noise_shape,
            seed=(as_int(seed) or 0) if noise == "seeded" else None,
        ),
        checkpoint=CheckpointOrigin(sha256=plan.sha256(), updates=plan.source.updates),
    )


def _finite(bounds: tuple[float, ...] | None) -> tuple[float | None, ...] | None:
    if bounds is None:
        return None
    return tuple(float(b) if math.isfinite(b) else None for b in bounds)


def _onnx() -> Any:  # noqa: ANN401 - a module
    try:
        import onnx
    except ImportError as error:
        raise MissingDependencyError(
            "Exporting needs onnx: got none, expected it to be installed. "
            + how_to_install("export")
        ) from error
    return onnx


def _check_jumps(plan: Plan, most: int) -> None:
    if plan.steps > most:
        raise ExportError(
            f"The file would hold too many jumps: got steps={plan.steps}, expected at most {most} "
            "of this kind of policy. Pass a smaller number as `steps`."
        )


def _program(plan: Plan) -> torch.export.ExportedProgram:
    _check_jumps(plan, _MOST_TRACED)
    parts, noise = plan.probes(3)
    rows = torch.export.Dim("batch", min=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own parts
            return torch.export.export(
                PolicyModule(plan),
                (*parts, noise),
                dynamic_shapes=(tuple({0: rows} for _ in (*parts, noise)),),
            )
    except Exception as error:
        raise ExportError(
            f"torch.export cannot export this policy: got {type(error).__name__} ({error}), "
            "expected modules that it can trace with any number of rows. Look at your network or "
            "encoder."
        ) from error


def _compiled(program: torch.export.ExportedProgram, path: Path) -> Any:  # noqa: ANN401 - a callable
    from torch import _inductor

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _inductor.aoti_compile_and_package(program, package_path=str(path))
        return _inductor.aoti_load_package(str(path))
    except Exception as error:
        raise ExportError(
            f"AOTInductor cannot compile this policy here: got {type(error).__name__} ({error}), "
            "expected a working compiler of C++. Take compiled=False."
        ) from error


def _by_torch(plan: Plan) -> Any:  # noqa: ANN401 - onnx.ModelProto
    """Returns the graph of a policy with modules that are not the default ones."""
    program, inputs = _program(plan), [*plan.inputs, "noise"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                program,
                dynamo=True,
                input_names=inputs,
                output_names=[ACTION],
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
    except ImportError as error:  # torch.onnx takes onnxscript
        raise MissingDependencyError(
            "Exporting a network, encoder or sampler of your own needs onnxscript: got none, "
            f"expected it to be installed. {how_to_install('export')}"
        ) from error
    except Exception as error:
        raise ExportError(
            f"torch.onnx cannot export this policy: got {type(error).__name__} ({error}), expected "
            "operators that ONNX has. Look at your network or encoder, or take export_torch."
        ) from error
    assert exported is not None  # it is, unless it was to write a file
    model = exported.model_proto
    found = {(entry.domain, entry.version) for entry in model.opset_import}
    if found != {("", OPSET)}:
        raise ExportError(
            f"torch.onnx has written operators that few runtimes have: got {sorted(found)}, "
            f"expected those of ONNX's opset {OPSET}. Look at your network or encoder, or take "
            "export_torch."
        )
    model.ir_version = min(model.ir_version, IR_VERSION)
    # The number of rows has a name of torch's own there, in what is written next to the operators.
    del model.graph.value_info[:]
    for entry in (*model.graph.input, *model.graph.output):
        entry.type.tensor_type.shape.dim[0].dim_param = "batch"
    # Where its lines stood on this machine stays here.
    for thing in (model, model.graph, *model.graph.node, *model.graph.input, *model.graph.output,
                  *model.graph.value_info, *model.graph.initializer):  # fmt: skip
        thing.ClearField("metadata_props")
        thing.ClearField("doc_string")
    return model


def _session(model: Any, names: Sequence[str]) -> _Outputs:  # noqa: ANN401 - onnx.ModelProto
    """Returns a function that runs a model: by onnxruntime, or where it lacks, by onnx itself."""
    session: Any
    try:
        import onnxruntime
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        session = ReferenceEvaluator(model)
    else:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def run(inputs: Sequence[Tensor]) -> npt.NDArray[np.float32]:
        feed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        result: npt.NDArray[np.float32] = session.run([ACTION], feed)[0]
        return result

    return run


@contextlib.contextmanager
def _plainly() -> Iterator[None]:
    """Computes in the precision of the weights, whatever the caller's context asks for."""
    with outside(), torch.no_grad(), torch.autocast("cpu", enabled=False):
        yield


def _compare(plan: Plan, run: _Outputs, precision: Precision) -> None:
    """Raises unless a file gives the policy's actions; of candidates of one value, any of them."""
    policy, (low, high) = PolicyModule(plan), plan.box
    half = torch.from_numpy(np.tile((high - low) / 2, plan.chunk))
    for rows in _ROWS:
        parts, noise = plan.probes(rows)
        got = torch.from_numpy(run([*parts, noise])).reshape(rows, -1)
        flat = policy.flatten(parts)
        drawn = policy.sample(flat, noise)
        several = policy.to_box(drawn).reshape(rows, plan.candidates, -1)
        allowed = torch.ones(several.shape[:2], dtype=torch.bool, device="cpu")
        if plan.critic is not None:
            value = policy.values(flat, drawn)
            best = value.amax(1, keepdim=True)
            allowed = value >= best - 10 * _TOLERANCE[precision] * (1 + best.abs())
        elif plan.candidates > 1:
            clear = margin_of_mode(drawn.view_as(several)) > _TOLERANCE[precision]
            # Of two that are as central it may be the other one's mode: somewhere among all.
            among = got.clamp(several.amin(1), several.amax(1))
            mode = policy.to_box(policy.choose(flat, drawn))
            several = torch.where(clear[:, None], mode, among)[:, None]
            allowed = allowed[:, :1]
        apart = (several - got[:, None]).abs()
        if plan.whole:  # to the nearest of two numbers, of which it may be halfway between
            rounded = (got == got.round())[:, None]
            apart = torch.where(rounded, apart - 0.5, torch.inf).clamp(min=0)
        away = (apart / half).amax(2)
        error = away.masked_fill(~allowed, torch.inf).amin(1).max().item()
        if not error <= _TOLERANCE[precision]:
            raise ExportError(
                f"The exported policy does not act as the policy does: got actions that differ by "
                f"{error:.3g} of half their range in a batch of {rows}, expected at most "
                f"{_TOLERANCE[precision]}. A module that draws random numbers, or does something "
                "else in training than in evaluation, cannot be exported."
            )
    _check_in_box(plan, run([*plan.far_away(parts), noise]))


def _check_ranges(plan: Plan, run: _Outputs) -> None:
    parts, _ = plan.probes(33)
    _check_in_box(plan, run(parts))


def _check_in_box(plan: Plan, action: npt.NDArray[np.float32]) -> None:
    low, high = plan.box
    flat = action.reshape(-1, plan.action_dim)
    if not ((low <= flat) & (flat <= high)).all():
        raise ExportError(
            f"The exported policy leaves the Box: got actions from {flat.min()} to {flat.max()}, "
            f"expected {low} to {high}."
        )


def _write(path: Path, data: bytes) -> None:
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(data)
    except (OSError, ValueError) as error:  # a name with a zero byte, or none
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: Exception) -> ExportError:
    return ExportError(
        f"{path} cannot be written: got {error}, expected a writable place. What was there before "
        "is unchanged."
    )
