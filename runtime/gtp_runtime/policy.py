"""A policy from a file: from an observation to an action in the units of the environment."""

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike

from gtp_runtime.backends import (
    Backend,
    NumpyBackend,
    OnnxRuntimeBackend,
    Slot,
    load_onnxruntime,
)
from gtp_runtime.document import Document, ObservationPart, read_document
from gtp_runtime.errors import (
    ActionError,
    MissingDependencyError,
    NoiseError,
    ObservationError,
    PolicyFileError,
)
from gtp_runtime.graph import Array, read_graph
from gtp_runtime.keyed_noise import keyed_noise
from gtp_runtime.operators import Meter

Observation = ArrayLike | Mapping[str, ArrayLike]
Bounds = Literal["ignore", "clip", "refuse"]
MAX_BYTES = 256 * 2**20
# What one observation may take: numbers in memory, multiplications.
_MAX_NUMBERS, _MAX_PRODUCTS = 1 << 27, 1 << 33


class Policy:
    r"""A trained policy, without torch.

    Made by `load`. All methods may be called from several threads at once.

    .. math:: a = \pi(o, z), \quad z \sim N(0, I)

    The noise z of a seed is ``numpy.random.default_rng(seed).standard_normal(shape, float32)`` with
    the shape of ``noise`` in `act`: another stream than torch's, so a seed gives another action
    than in gtp-policy. The same noise gives the same action, up to rounding.

    Args:
        document: What the file says of itself.
        backend: What computes its graph.
        bounds: As for `load`.

    Attributes:
        document: What the file says of itself: shapes, bounds, steps, versions, hashes.
        backend: ``onnxruntime`` or ``numpy``.

    Example:
        >>> import numpy as np
        >>> from gtp_runtime import Policy, example_file
        >>> policy = Policy.load(example_file())
        >>> policy.act(np.zeros(3), deterministic=True).shape
        (1,)
        >>> policy.act(np.zeros((5, 3)), seed=0).shape
        (5, 1)
    """

    def __init__(self, document: Document, backend: Backend, bounds: Bounds = "ignore") -> None:
        self.document = document
        self.backend = backend.name
        self._slot = backend.slot
        self._bounds = bounds
        self._random = np.random.default_rng()
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str] | bytes,
        *,
        backend: Literal["auto", "onnxruntime", "numpy"] = "auto",
        threads: int = 1,
        bounds: Bounds = "ignore",
        max_bytes: int = MAX_BYTES,
    ) -> Self:
        """Loads a policy file, checks it as a whole and computes one action with it.

        Nothing in a file is executed but operators of ONNX that gtp-policy writes, and nothing that
        it names is opened. One observation is computed in numpy first, within limits on memory and
        work; only then does ONNX Runtime see the bytes that were checked.

        Args:
            source: The file that ``gtp_policy.export.export_onnx`` wrote, or its content.
            backend: What computes. ``auto`` is ONNX Runtime where it is installed, else numpy,
                which is slower and needs nothing more.
            threads: Threads that one call computes with; 1 is right for one observation at a time.
            bounds: What is done with an observation outside the bounds that the file has: nothing,
                clip it to them, or refuse it.
            max_bytes: Largest size of the file.

        Returns:
            The policy.

        Raises:
            PolicyFileError: If the file is missing, foreign, damaged, too large or refused.
            NewerFormatError: If it is of a later format.
            MissingDependencyError: If the backend is not installed.
            ValueError: If an argument is none of those above.

        Example:
            >>> from gtp_runtime import Policy, example_file
            >>> Policy.load(example_file(), backend="numpy").document.steps
            2
        """
        if backend not in ("auto", "onnxruntime", "numpy"):
            raise ValueError(
                f'`backend` is unknown: got {backend!r}, expected "auto", "onnxruntime" or "numpy".'
            )
        if bounds not in ("ignore", "clip", "refuse"):
            raise ValueError(
                f'`bounds` is unknown: got {bounds!r}, expected "ignore", "clip" or "refuse".'
            )
        threads = int(threads) if isinstance(threads, np.integer) else threads
        if type(threads) is not int or threads < 1:
            raise ValueError(f"`threads` is out of range: got {threads}, expected an integer >= 1.")
        data = (
            source
            if isinstance(source, bytes)
            else _read(Path(os.path.expanduser(source)), max_bytes)
        )
        if len(data) > max_bytes:
            raise _too_large(len(data), max_bytes)
        if data.startswith(b"PK"):  # a zip file, which no model is
            raise PolicyFileError(
                "This is no policy file: got a zip file, which may be a checkpoint, expected an "
                "ONNX model. Where gtp-policy is installed, "
                'gtp_policy.export.export_onnx("checkpoint.zip", "policy.onnx") writes one.'
            )
        graph = read_graph(data)
        document = read_document(graph)
        plain = _try(NumpyBackend(graph, document, Meter(_MAX_NUMBERS, _MAX_PRODUCTS)), document)
        chosen: Backend = plain  # which has computed one action
        if backend == "onnxruntime" or (backend == "auto" and _has_onnxruntime()):
            chosen = OnnxRuntimeBackend(data, document, threads)
            _warm_up(chosen)
        elif document.noise == "seeded":
            raise PolicyFileError(
                "The policy file needs ONNX Runtime: got noise that the runtime draws inside, "
                "expected onnxruntime. Install it, or export with the noise as an input."
            )
        return cls(document, chosen, bounds)

    def zeros(self) -> dict[str, Array] | Array:
        """Returns an observation of zeros, of the right structure and shape."""
        parts = self.document.observation
        zeros = {part.key: np.zeros(part.shape, np.float32) for part in parts}
        if None in zeros:
            return zeros[None]
        return {str(key): value for key, value in zeros.items()}

    def act(
        self,
        obs: Observation,
        *,
        deterministic: bool = False,
        seed: int | None = None,
        noise: ArrayLike | None = None,
    ) -> Array:
        """Returns the action for an observation, or for each of a batch.

        At random unless one of the three says otherwise. A file whose noise is ``keyed``
        inside always acts deterministically.

        Args:
            obs: Observation in the units of the environment, not normalised: one array of shape
                ``shape`` or (B, ...), of a Dict a mapping of such arrays by key. Of any type of
                real numbers; computed in float32.
            deterministic: Start from a noise that is a function of the observation.
            seed: Seed of the noise.
            noise: The noise itself, standard normal: the file's ``noise.shape``, with the batch in
                front if ``obs`` has one.

        Returns:
            Action, float32, in the units of the environment and inside its Box: ``shape`` or
            (B, ...); with chunks of h > 1 actions (h, ...) or (B, h, ...).

        Raises:
            ObservationError: If the observation has the wrong structure, shape or type, holds NaN
                or infinity, or is out of bounds where they are refused.
            NoiseError: If the file does not allow the noise or seed, or both are given.
            ActionError: If the action is not finite.

        Example:
            >>> import numpy as np
            >>> from gtp_runtime import Policy, example_file
            >>> policy = Policy.load(example_file())
            >>> a, b = (policy.act([0.1, 0.2, 0.3], seed=7) for _ in range(2))
            >>> np.array_equal(a, b)
            True
        """
        document = self.document
        parts, single, batch = self._parts(obs)
        slot = self._slot(batch)
        for part, value in zip(document.observation, parts, strict=True):
            self._fill(part, value, slot.inputs[part.input], single)
        if deterministic + (seed is not None) + (noise is not None) > 1:
            raise NoiseError(
                f"Noise is given twice: got deterministic={deterministic}, seed={seed} and "
                f"{'a' if noise is not None else 'no'} noise, expected at most one of them."
            )
        if document.noise_input is None:
            self._refuse_noise(deterministic, seed, noise)
        elif noise is not None:
            self._copy_noise(slot.inputs[document.noise_input], noise, single)
        elif deterministic:
            parts = [slot.inputs[part.input] for part in document.observation]
            np.copyto(slot.inputs[document.noise_input], self._keyed(parts))
        else:
            self._draw(slot.inputs[document.noise_input], seed)
        result = self._run(slot, batch)
        return result[0, ...] if single else result  # an array also where it is a number

    def compute(self, parts: Sequence[Array], noise: Array | None) -> Array:
        """Returns the actions for what `check` and `draw_noise` have returned, unchecked.

        Args:
            parts: The inputs in the order of ``document.observation``, float32, with a batch.
            noise: Float32, of the same batch; None where it is inside the file.

        Returns:
            Actions as `act` returns them, with a batch.

        Raises:
            ActionError: If an action is not finite.

        Example:
            >>> from gtp_runtime import Policy, example_file
            >>> policy = Policy.load(example_file())
            >>> parts, _ = policy.check([[1, 2, 3], [4, 5, 6]])
            >>> policy.compute(parts, policy.draw_noise(parts)).shape
            (2, 1)
        """
        batch = len(parts[0])
        slot = self._slot(batch)
        for part, value in zip(self.document.observation, parts, strict=True):
            np.copyto(slot.inputs[part.input], value)
        if self.document.noise_input is not None:
            assert noise is not None, "the file takes a noise"
            np.copyto(slot.inputs[self.document.noise_input], noise)
        return self._run(slot, batch)

    def _run(self, slot: Slot, batch: int) -> Array:
        document = self.document
        result = np.empty((batch, *document.result_shape), np.float32)
        # The Box holds whatever the graph is; NaN passes, and is seen.
        np.maximum(slot.run(), document.low, out=result)
        np.minimum(result, document.high, out=result)
        if not np.isfinite(result).all():
            raise ActionError(
                "The action is not finite: got NaN for a finite observation, expected numbers. "
                "The observation may be far outside of what the policy was trained on."
            )
        return result

    def check(self, obs: Observation) -> tuple[list[Array], bool]:
        """Checks an observation as `act` does, and computes nothing.

        Args:
            obs: As for `act`.

        Returns:
            The inputs in the order of ``document.observation``, float32, each with a batch in
            front; and whether that batch was not there before.

        Raises:
            ObservationError: As for `act`.

        Example:
            >>> from gtp_runtime import Policy, example_file
            >>> Policy.load(example_file()).check([1, 2, 3])
            ([array([[1., 2., 3.]], dtype=float32)], True)
        """
        parts, single, batch = self._parts(obs)
        checked = []
        for part, value in zip(self.document.observation, parts, strict=True):
            checked.append(np.empty((batch, *part.shape), np.float32))
            self._fill(part, value, checked[-1], single)
        return checked, single

    def _parts(self, obs: Observation) -> tuple[list[Array], bool, int]:
        """Returns the arrays of an observation, whether it is a single one, and their number."""
        document = self.document
        if isinstance(obs, Mapping) != document.is_dict:
            raise ObservationError(
                f"The observation has the wrong structure: got {type(obs).__name__}, expected "
                f"{self._expected()}."
            )
        if isinstance(obs, Mapping):
            keys = [part.key for part in document.observation]
            if missing := [key for key in keys if key not in obs]:
                raise ObservationError(
                    f"The observation is not complete: got the keys {sorted(map(str, obs))}, "
                    f"expected {missing[0]!r} too."
                )
            values = [obs[str(key)] for key in keys]
        else:
            values = [obs]
        parts: list[Array] = []
        for part, value in zip(document.observation, values, strict=True):
            array = _array(part.input, value, part.shape, ObservationError)
            if array.dtype.kind not in "fiub":
                raise ObservationError(
                    f"`{part.input}` has the wrong type: got {array.dtype}, expected real numbers."
                )
            # A class, as Discrete has it, is a number.
            parts.append(array.reshape(1) if (array.shape, part.shape) == ((), (1,)) else array)
        first = document.observation[0]
        rows = () if parts[0].ndim == len(first.shape) else parts[0].shape[:1]
        for part, array in zip(document.observation, parts, strict=True):
            if array.shape != (*rows, *part.shape) or 0 in rows:
                raise ObservationError(
                    f"`{part.input}` has the wrong shape: got {array.shape}, expected {part.shape} "
                    f"or (batch, {', '.join(map(str, part.shape))}), the same batch in each part."
                )
        return parts, not rows, rows[0] if rows else 1

    def _fill(self, part: ObservationPart, value: Array, buffer: Array, single: bool) -> None:
        """Writes an observation into the buffer of an input, checked."""
        _copy(buffer[0, ...] if single else buffer, value)  # of single numbers a view, too
        finite = np.isfinite(buffer)
        if not finite.all():
            where = tuple(map(int, np.argwhere(~finite)[0]))
            raise ObservationError(
                f"`{part.input}` is not finite: got {buffer[where]} at row {where[0]}, index "
                f"{where[1:]}, expected finite numbers in float32. Do not act on it."
            )
        if self._bounds == "ignore":
            return
        low = -np.inf if part.low is None else part.low
        high = np.inf if part.high is None else part.high
        if self._bounds == "clip":
            np.clip(buffer, low, high, out=buffer)
            return
        outside = (buffer < low) | (buffer > high)
        if outside.any():
            where = tuple(map(int, np.argwhere(outside)[0]))
            inside = where[len(where) - np.ndim(low) :] if np.ndim(low) else ()
            raise ObservationError(
                f"`{part.input}` is out of bounds: got {buffer[where]} at row {where[0]}, index "
                f"{where[1:]}, expected {np.asarray(low)[inside]} to "
                f"{np.broadcast_to(high, np.shape(low))[inside]}. Check the units, or load with "
                'bounds="clip".'
            )

    def draw_noise(
        self, parts: Sequence[Array], *, deterministic: bool = False, seed: int | None = None
    ) -> Array | None:
        """Returns the noise that `act` starts from for the same observations and arguments.

        Args:
            parts: What `check` has returned, with the batch in front.
            deterministic: As for `act`.
            seed: As for `act`.

        Returns:
            Standard normal numbers, float32, (B, ``*noise.shape``); None where the noise is inside
            the file.

        Raises:
            NoiseError: If the file does not allow the noise or seed, or both are given.

        Example:
            >>> from gtp_runtime import Policy, example_file
            >>> policy = Policy.load(example_file())
            >>> parts, _ = policy.check([[1, 2, 3], [4, 5, 6]])
            >>> policy.draw_noise(parts, seed=0).shape
            (2, 1)
        """
        document = self.document
        if deterministic and seed is not None:
            raise NoiseError(
                f"Noise is given twice: got deterministic=True and seed={seed}, expected at most "
                "one of them."
            )
        if document.noise_input is None:
            self._refuse_noise(deterministic, seed, None)
            return None
        if deterministic:
            return self._keyed(parts)
        noise = np.empty((len(parts[0]), *document.noise_shape), np.float32)
        self._draw(noise, seed)
        return noise

    def _keyed(self, parts: Sequence[Array]) -> Array:
        return keyed_noise(parts, self.document.history, self.document.noise_shape)

    def _refuse_noise(self, deterministic: bool, seed: int | None, noise: ArrayLike | None) -> None:
        """Raises if noise is given to a file that has its noise inside."""
        source = self.document.noise
        wish = "a seed" if seed is not None else "a noise" if noise is not None else ""
        if source == "seeded" and deterministic:
            wish = "deterministic=True"
        if wish:
            raise NoiseError(
                f"The noise is inside the file: got {wish} for a noise that is {source}, expected "
                "none. Export the policy with the noise as an input to choose it per action."
            )

    def _draw(self, buffer: Array, seed: int | None) -> None:
        """Writes noise into a buffer."""
        if seed is not None:
            try:
                random = np.random.default_rng(seed)
            except (TypeError, ValueError) as error:
                raise NoiseError(
                    f"`seed` is unusable: got {seed!r:.80}, expected an integer >= 0."
                ) from error
            random.standard_normal(dtype=np.float32, out=buffer)
        else:
            with self._lock:
                self._random.standard_normal(dtype=np.float32, out=buffer)

    def _copy_noise(self, buffer: Array, given: ArrayLike, single: bool) -> None:
        target = buffer[0] if single else buffer
        noise = _array("noise", given, target.shape, NoiseError)
        if noise.shape != target.shape or noise.dtype.kind not in "fi":
            raise NoiseError(
                f"`noise` has the wrong shape or type: got {noise.dtype} of {noise.shape}, "
                f"expected real numbers of {target.shape}."
            )
        _copy(target, noise)
        if not np.isfinite(target).all():
            raise NoiseError(
                "`noise` is not finite: got NaN, infinity or a number beyond float32, expected "
                "standard normal numbers."
            )

    def _expected(self) -> str:
        parts = self.document.observation
        if self.document.is_dict:
            return f"a mapping with the keys {[part.key for part in parts]}"
        return f"an array of shape {parts[0].shape}, alone or in a batch"

    def __repr__(self) -> str:
        """Shows what it maps to what."""
        document = self.document
        return (
            f"Policy({self._expected()} -> {document.result_shape}, steps={document.steps}, "
            f"backend={self.backend!r})"
        )


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        if not path.is_file():  # a pipe would be waited for
            raise PolicyFileError(
                f"Policy file {path} cannot be read: got no such file, expected a file that "
                "gtp_policy.export.export_onnx wrote."
            )
        with path.open("rb") as file:
            if (size := os.fstat(file.fileno()).st_size) > max_bytes:
                raise _too_large(size, max_bytes)
            return file.read(max_bytes + 1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise PolicyFileError(
            f"Policy file {path} cannot be read: got {reason}, expected a file that "
            "gtp_policy.export.export_onnx wrote."
        ) from error


def _too_large(size: int, limit: int) -> PolicyFileError:
    return PolicyFileError(
        f"The policy file is too large: got {size} bytes, expected at most {limit}. If you trust "
        "it, load it with a larger `max_bytes`."
    )


def _try(backend: NumpyBackend, document: Document) -> NumpyBackend:
    """Computes one action in numpy, within limits: what is too much or wrong is found here."""
    meter, inputs = Meter(_MAX_NUMBERS, _MAX_PRODUCTS), {}
    for name, shape in document.input_shapes.items():
        meter.take(shape)
        inputs[name] = np.zeros((1, *shape), np.float32)
    found = backend.evaluate(inputs, meter)
    right = (1, *document.result_shape)
    if found.shape != right or found.dtype != np.float32:
        raise PolicyFileError(
            f"The policy file contradicts itself: got {found.dtype} of shape {found.shape} for one "
            f"observation, expected float32 of {right} as its document says."
        )
    return backend


def _warm_up(backend: Backend) -> None:
    """Prepares what a first call does; zeros need not be an observation that is allowed."""
    slot = backend.slot(1)
    for buffer in slot.inputs.values():
        buffer.fill(0)
    slot.run()


def _array(
    name: str,
    value: ArrayLike,
    shape: tuple[int, ...],
    error: type[ObservationError] | type[NoiseError],
) -> Array:
    """Returns a value as an array; what has rows of several lengths is none, nor what is masked."""
    if is_masked(value):
        raise error(
            f"`{name}` is masked: got elements without a value, expected numbers only. What lies "
            "under a mask is no number to act on."
        )
    try:
        return np.asarray(value)
    except ValueError as reason:
        raise error(
            f"`{name}` is no array: got {reason}, expected one of shape {shape}."
        ) from reason


def is_masked(value: object) -> bool:
    """Returns whether something in arrays, or in lists of them, is masked."""
    if isinstance(value, list | tuple):
        return any(map(is_masked, value))
    return isinstance(value, np.ma.MaskedArray) and bool(np.ma.getmaskarray(value).any())


def _copy(target: Array, value: Array) -> None:
    if value.dtype == np.float64:
        with np.errstate(over="ignore"):  # infinity is what the caller looks for
            np.copyto(target, value, casting="same_kind")
    else:
        np.copyto(target, value, casting="same_kind")


def _has_onnxruntime() -> bool:
    try:
        load_onnxruntime()
    except MissingDependencyError:
        return False
    return True
