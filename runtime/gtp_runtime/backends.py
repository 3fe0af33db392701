"""What computes a policy's graph: ONNX Runtime, or numpy where there is none, and as its oracle.

A backend gives each thread a `Slot`: buffers for the inputs of one batch size, and a call that
computes the output from them.
"""

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gtp_runtime.document import Document, Shape
from gtp_runtime.errors import MissingDependencyError, PolicyFileError
from gtp_runtime.graph import Array, Graph, Node
from gtp_runtime.operators import OPERATORS, RANDOM, SHAPES_ALONE, SIZES, Meter

if TYPE_CHECKING:
    import onnxruntime

_NO_LIMIT = Meter()
# Buffers of a batch beyond so many numbers are not kept from one call to the next.
_KEPT = 1 << 20
_NONE = slice(0)


class Slot(Protocol):
    """Buffers for one batch size in one thread.

    Attributes:
        inputs: The buffers by name of the input, float32, to be filled before `run`.
    """

    inputs: dict[str, Array]

    def run(self) -> Array:
        """Returns the output, which the next run may overwrite."""
        ...


class Backend(Protocol):
    """What computes a graph.

    Attributes:
        name: ``onnxruntime`` or ``numpy``.
    """

    name: str

    def slot(self, batch: int) -> Slot:
        """Returns this thread's buffers for a batch.

        Args:
            batch: Number of observations.

        Returns:
            The buffers.
        """
        ...


class NumpyBackend:
    """Computes a graph operator by operator in numpy.

    Args:
        graph: The model.
        document: What the file says of itself.
        meter: What computing the constant part may take.

    What is computed from an observation may decide the numbers of a result, never their count:
    what one observation takes, every other takes too.

    Raises:
        PolicyFileError: If there is an operator that gtp-policy does not write, the constant part
            cannot be computed, or a size depends on more than sizes.

    Example:
        >>> from gtp_runtime.backends import NumpyBackend
        >>> NumpyBackend.name
        'numpy'
    """

    name = "numpy"

    def __init__(self, graph: Graph, document: Document, meter: Meter = _NO_LIMIT) -> None:
        self._shapes = document.input_shapes
        self._output = document.output
        self._known: dict[str, Array] = dict(graph.constants)
        self._nodes: list[Node] = []
        varying = set(self._shapes)  # by more than their number: what comes of inputs, or is drawn
        for node in graph.nodes:
            if node.operator not in OPERATORS:
                raise PolicyFileError(
                    f"The policy file is refused: got the operator {node.operator[:80]!r}, "
                    f"expected one of the {len(OPERATORS)} that gtp_policy.export writes. Export "
                    "the policy again, or update gtp-policy-runtime."
                )
            if node.operator in RANDOM and document.noise != "seeded":
                raise PolicyFileError(
                    "The policy file contradicts itself: got an operator that draws numbers, "
                    f"expected none for the noise {document.noise!r} of its document."
                )
            names = [name for name in node.inputs if name]
            sizes = {*node.inputs[SIZES.get(node.operator, _NONE)]} & varying
            if sizes:
                raise PolicyFileError(
                    f"The policy file is refused: got an operator {node.operator} whose result is "
                    f"as large as {min(sizes)[:80]!r} says, which an observation decides, expected "
                    "a size that is the same for all. Export the policy again."
                )
            if node.operator in RANDOM or (
                node.operator not in SHAPES_ALONE and not varying.isdisjoint(names)
            ):
                varying.update(node.outputs)
            if node.operator in RANDOM or any(name not in self._known for name in names):
                self._nodes.append(node)
            else:
                compute(node, self._known, meter)

    def evaluate(self, inputs: Mapping[str, Array], meter: Meter = _NO_LIMIT) -> Array:
        """Computes the output.

        Args:
            inputs: The inputs by name.
            meter: What it may take.

        Returns:
            The output.

        Raises:
            PolicyFileError: If an operator cannot be computed, or it takes more.
        """
        values = {**self._known, **inputs}
        for node in self._nodes:
            compute(node, values, meter)
        return values[self._output]

    def slot(self, batch: int) -> Slot:
        """Returns buffers for a batch.

        Args:
            batch: Number of observations.

        Returns:
            The buffers.
        """
        return _NumpySlot(self, self._shapes, batch)


class _NumpySlot:
    def __init__(self, backend: NumpyBackend, shapes: Mapping[str, Shape], batch: int) -> None:
        self._backend = backend
        self.inputs = _buffers(shapes, batch)

    def run(self) -> Array:
        return self._backend.evaluate(self.inputs)


def compute(node: Node, values: dict[str, Array], meter: Meter) -> None:
    """Computes an operator and puts what it makes among the values.

    Args:
        node: The operator.
        values: Everything that is known, by name.
        meter: What it may take.

    Raises:
        PolicyFileError: If it cannot be computed.

    Example:
        >>> import numpy as np
        >>> from gtp_runtime.backends import compute
        >>> from gtp_runtime.graph import Node
        >>> from gtp_runtime.operators import Meter
        >>> values = {"x": np.array([-1.0, 2.0])}
        >>> compute(Node("Relu", ("x",), ("y",), {}), values, Meter())
        >>> values["y"]
        array([0., 2.])
    """
    inputs = [values[name] if name else None for name in node.inputs]
    try:
        with np.errstate(all="ignore"):
            made = OPERATORS[node.operator](meter, *inputs, **node.attributes)
    except PolicyFileError:
        raise
    except (ValueError, TypeError, IndexError, AttributeError, ArithmeticError) as error:
        raise PolicyFileError(
            f"The policy file cannot be computed: got {str(error)[:200]} at an operator "
            f"{node.operator}, expected inputs and attributes as gtp_policy.export writes them."
        ) from error
    except MemoryError as error:
        raise PolicyFileError(
            f"The policy file cannot be computed: got no memory at an operator {node.operator}, "
            "expected a smaller result."
        ) from error
    outputs = made if isinstance(made, tuple) else (made,)
    if len(outputs) != len(node.outputs):
        raise PolicyFileError(
            f"The policy file cannot be computed: got {len(node.outputs)} outputs of an operator "
            f"{node.operator}, expected {len(outputs)}."
        )
    for name, value in zip(node.outputs, outputs, strict=True):
        values[name] = np.asarray(value)


class OnnxRuntimeBackend:
    """Computes a graph with ONNX Runtime on the CPU, in buffers that are bound once per thread.

    Args:
        data: The content of the file, whose graph was checked before.
        document: What the file says of itself.
        threads: Threads that one call computes with.

    Raises:
        MissingDependencyError: If onnxruntime is not installed.
        PolicyFileError: If ONNX Runtime does not take the file.

    Example:
        >>> from gtp_runtime.backends import OnnxRuntimeBackend
        >>> OnnxRuntimeBackend.name
        'onnxruntime'
    """

    name = "onnxruntime"

    def __init__(self, data: bytes, document: Document, threads: int = 1) -> None:
        runtime = load_onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 4  # what is wrong is raised; nothing is printed
        # Waiting threads would take the cores of other programs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        try:
            self._session = runtime.InferenceSession(
                data, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors have no common class
            raise PolicyFileError(
                f"The policy file cannot be used: got {str(error)[:300]} from ONNX Runtime "
                f"{runtime.__version__}, expected a graph that it takes. Update onnxruntime."
            ) from error
        self._shapes = document.input_shapes
        self._output, self._result = document.output, document.result_shape
        self._kept = threading.local()

    def slot(self, batch: int) -> Slot:
        """Returns this thread's buffers for a batch: those of the last call, if it was as large.

        Args:
            batch: Number of observations.

        Returns:
            The buffers.
        """
        slot: _BoundSlot | None = getattr(self._kept, "slot", None)
        if slot is None or slot.batch != batch:
            slot = _BoundSlot(self._session, self._shapes, self._output, self._result, batch)
            if slot.numbers <= _KEPT:
                self._kept.slot = slot
        return slot


class _BoundSlot:
    def __init__(
        self,
        session: "onnxruntime.InferenceSession",
        shapes: Mapping[str, Shape],
        output: str,
        result: Shape,
        batch: int,
    ) -> None:
        self.batch = batch
        self.inputs = _buffers(shapes, batch)
        self._result = np.empty((batch, *result), np.float32)
        self.numbers = sum(b.size for b in self.inputs.values()) + self._result.size
        self._session, self._binding = session, session.io_binding()
        for name, buffer in self.inputs.items():
            self._binding.bind_input(name, "cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)
        self._binding.bind_output(
            output, "cpu", 0, np.float32, self._result.shape, self._result.ctypes.data
        )

    def run(self) -> Array:
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # its errors have no common class
            raise PolicyFileError(
                f"The policy file cannot be computed: got {str(error)[:300]} from ONNX Runtime."
            ) from error
        return self._result


def _buffers(shapes: Mapping[str, Shape], batch: int) -> dict[str, Array]:
    return {name: np.empty((batch, *shape), np.float32) for name, shape in shapes.items()}


def load_onnxruntime() -> Any:  # noqa: ANN401 - a module
    """Returns the module onnxruntime.

    Returns:
        The module.

    Raises:
        MissingDependencyError: If it is not installed, or does not load.

    Example:
        >>> from gtp_runtime.backends import load_onnxruntime
        >>> load_onnxruntime().__name__
        'onnxruntime'
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            f"onnxruntime is not there: got {error}, expected onnxruntime. Install "
            'gtp-policy-runtime with its dependencies, or load with backend="numpy".'
        ) from error
    return onnxruntime
