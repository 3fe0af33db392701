"""Nodes of a graph in their order, and constants, under names of which no two are equal."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper


class Nodes:
    """Operators in their order, and constants, of which equal ones are kept once.

    Args:
        prefix: What every name begins with: the nodes of two of them can stand in one graph.
    """

    def __init__(self, prefix: str = "") -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._prefix = prefix
        self._constants: dict[tuple[str, tuple[int, ...], bytes], onnx.TensorProto] = {}

    @property
    def constants(self) -> list[onnx.TensorProto]:
        """The constants, as initialisers of a graph."""
        return list(self._constants.values())

    def op(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:  # noqa: ANN401
        """Adds a node and returns the name of its output.

        Args:
            kind: Of the operator.
            *inputs: Names.
            output: Its name; default a new one.
            **attributes: Of the operator.
        """
        name = output or f"{self._prefix}{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, value: npt.ArrayLike) -> str:
        """Adds a constant, if there is none that is equal, and returns its name.

        Args:
            value: Its numbers, in its type.
        """
        array = np.ascontiguousarray(value)
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self._constants:
            name = f"{self._prefix}constant_{len(self._constants)}"
            self._constants[key] = numpy_helper.from_array(array, name)
        return self._constants[key].name

    def number(self, value: npt.ArrayLike) -> str:
        """Adds a constant in float32.

        Args:
            value: Its numbers.
        """
        return self.constant(np.asarray(value, np.float32))

    def integers(self, *values: int) -> str:
        """Adds a list of integers in int64.

        Args:
            *values: They.
        """
        return self.constant(np.array(values, np.int64))

    def reshape(self, x: str, *shape: int) -> str:
        """Adds a reshape.

        Args:
            x: Name of what is reshaped.
            *shape: To what.
        """
        return self.op("Reshape", x, self.integers(*shape))
