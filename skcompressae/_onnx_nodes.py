"""Nodes and constants of an ONNX graph under construction, and the import of the package that they need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skcompressae._core._arrays import FloatArray

__all__ = ["GraphBuilder", "import_onnx"]


def import_onnx() -> Any:
    """Import onnx, or say which extra installs it."""
    try:
        import onnx
    except ImportError as error:
        raise ImportError("ONNX files need onnx: install the extra 'onnx' of skcompressae") from error
    return onnx


class GraphBuilder:
    """Collect the nodes of a graph, or of the body of a loop in it, which shares its constants and names.

    Parameters
    ----------
    onnx : module
    parent : GraphBuilder or None, default=None
        Of the graph around a body.
    """

    def __init__(self, onnx: Any, parent: GraphBuilder | None = None) -> None:
        self.onnx = onnx
        self.nodes: list[Any] = []
        self._constants: dict[Any, Any] = {} if parent is None else parent._constants
        self._n_names: dict[str, int] = {} if parent is None else parent._n_names

    @property
    def constants(self) -> list[Any]:
        """Return the tensors of all constants."""
        return list(self._constants.values())

    def constant(self, value: Any, dtype: type = np.int64) -> str:
        """Return the name of a small constant, one for all its uses."""
        array: NDArray[Any] = np.array(value, dtype=dtype)
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self._constants:
            self._constants[key] = self.onnx.numpy_helper.from_array(array, self.new_name("constant"))
        return self._constants[key].name

    def weight(self, name: str, array: FloatArray) -> str:
        """Keep an array under a name of its own."""
        self._constants[name] = self.onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Append a node of one output; return the output's name."""
        return self.add_several(operator, *inputs, outputs=[output or self.new_name(operator.lower())], **attributes)[0]

    def add_several(self, operator: str, *inputs: str, outputs: Sequence[str], **attributes: Any) -> Sequence[str]:
        """Append a node of several outputs; return their names."""
        name = self.new_name(f"{operator}_node")
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, outputs, name=name, **attributes))
        return outputs

    def new_names(self, *starts: str) -> list[str]:
        """Return names that no other tensor or node of the graph has."""
        return [self.new_name(start) for start in starts]

    def tensor(self, name: str, dtype: type, shape: Sequence[str | int]) -> Any:
        """Describe an input or an output."""
        helper = self.onnx.helper
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)

    def new_name(self, start: str) -> str:
        """Return a name that no other tensor or node of the graph has."""
        self._n_names[start] = self._n_names.get(start, 0) + 1
        return f"{start}_{self._n_names[start]}"
