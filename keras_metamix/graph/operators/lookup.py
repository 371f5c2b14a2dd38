"""Functions of one 8-bit tensor: on the device, tables of 256 codes."""

from __future__ import annotations

import ctypes
import ctypes.util
import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np
import scipy.special
from keras import ops

from keras_metamix.graph.group import Group, Stage
from keras_metamix.graph.operators.base import Operator
from keras_metamix.layers.grid import Grid
from keras_metamix.layers.integer import IntegerLayer, as_grid

_GELU_MINIMUM = -0.17005  # of either form


@keras.saving.register_keras_serializable("keras_metamix")
class IntegerTable(IntegerLayer):
    """A function of one 8-bit tensor: on the device, a table of 256 codes.

    Args:
      function: "sigmoid", "tanh", "elu", "gelu" or, by the hyperbolic tangent, "gelu_tanh".
    """

    def __init__(
        self,
        function: Literal["sigmoid", "tanh", "elu", "gelu", "gelu_tanh"],
        input_grid: Grid | dict[str, Any],
        output_grid: Grid | dict[str, Any],
        **kwargs: Any,
    ):
        super().__init__(output_grid, **kwargs)
        self.function, self.input_grid = function, as_grid(input_grid)

    def table(self) -> np.ndarray:
        """Output levels of the input's codes -128 to 127."""
        levels = np.arange(-128, 128) - self.input_grid.zero_point
        x = levels.astype(np.float32) * np.float32(self.input_grid.scale)
        y = _FUNCTIONS[self.function](x).astype(np.float32)
        scaled = y * np.float32(1 / self.output_grid.scale)
        if self.function in _HALF_AWAY:
            rounded = np.sign(scaled) * np.floor(np.abs(scaled) + np.float32(0.5))
        else:
            # The device adds the zero-point before it rounds: a tie may go the other way.
            zero_point = np.float32(self.output_grid.zero_point)
            rounded = np.rint(scaled + zero_point) - zero_point
        return np.clip(rounded, self.low, self.high)

    def call(self, x: Any) -> Any:
        codes = ops.cast(x, "int32") + (self.input_grid.zero_point + 128)
        return ops.take(self.table(), codes)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "function": self.function,
            "input_grid": dataclasses.asdict(self.input_grid),
        }


def _by_c_library(function: np.ufunc, x: np.ndarray) -> np.ndarray:
    """The C library's function, which LiteRT calls: NumPy's own may differ in the last bit."""
    library = ctypes.util.find_library("m")
    if library is None:
        return function(x)
    called = getattr(ctypes.CDLL(library), f"{function.__name__}f")
    called.argtypes, called.restype = [ctypes.c_float], ctypes.c_float
    return np.array([called(value) for value in x.tolist()], np.float32)


def _gelu(x: np.ndarray) -> np.ndarray:
    half = np.float32(0.5) * x
    return half * _by_c_library(scipy.special.erfc, x * np.float32(-np.sqrt(0.5)))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x * x * x)
    return np.float32(0.5) * x * (np.float32(1) + _by_c_library(np.tanh, inner))


_FUNCTIONS = {
    "sigmoid": lambda x: scipy.special.expit(x.astype(np.float64)),
    "tanh": lambda x: _by_c_library(np.tanh, x),
    "elu": lambda x: np.where(x > 0, x, _by_c_library(np.expm1, np.minimum(x, 0))),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
}
_HALF_AWAY = ("gelu", "gelu_tanh")  # whose kernel is none of XNNPACK's


class Sigmoid(Operator):
    """The sigmoid, whose scale the device fixes."""

    title = "sigmoid"
    litert = "LOGISTIC"
    stage = Stage.CLOSED
    fixed_step: float | None = 1 / 256
    placewise = True
    raw: tuple[str, ...] = ("Sigmoid",)
    functions: tuple[str, ...] = ("sigmoid",)
    gate_minimum: float | None = -0.27846

    def group(self, node: Any, sources: Sequence[Group], plan: Any) -> Group:
        return Group(node, self, sign="unsigned")

    def integers(self, node: Any, inputs: Sequence[Any], grid: Any, clip: dict[str, Any]) -> Any:
        layer = IntegerTable("sigmoid", inputs[0].grid, grid, name=node.call_name, **clip)
        return layer(inputs[0].tensor)


class Tanh(Operator):
    """The hyperbolic tangent, whose scale the device fixes."""

    title = "tanh"
    litert = "TANH"
    stage = Stage.CLOSED
    fixed_step: float | None = 1 / 128
    placewise = True
    raw: tuple[str, ...] = ("Tanh",)
    functions: tuple[str, ...] = ("tanh",)

    def group(self, node: Any, sources: Sequence[Group], plan: Any) -> Group:
        return Group(node, self)

    def integers(self, node: Any, inputs: Sequence[Any], grid: Any, clip: dict[str, Any]) -> Any:
        layer = IntegerTable("tanh", inputs[0].grid, grid, name=node.call_name, **clip)
        return layer(inputs[0].tensor)


class Elu(Operator):
    """ELU with alpha=1, whose values begin at -1."""

    title = "ELU"
    litert = "ELU"
    stage = Stage.CLOSED
    placewise = True
    layers: tuple[type, ...] = (keras.layers.ELU,)
    raw: tuple[str, ...] = ("Elu", "Celu")
    functions: tuple[str, ...] = ("elu", "celu")

    def refusal(self, node: Any) -> str:
        alpha = getattr(node.operation, "alpha", 1.0)
        if alpha == 1:
            return ""
        return f"no exact integer form with alpha={alpha:g}; use alpha=1, or LeakyReLU"

    def group(self, node: Any, sources: Sequence[Group], plan: Any) -> Group:
        if sources[0].sign == "unsigned":
            return Group(node, self, sign="unsigned")
        return Group(node, self, sign="offset", minimum=-1.0)

    def integers(self, node: Any, inputs: Sequence[Any], grid: Any, clip: dict[str, Any]) -> Any:
        layer = IntegerTable("elu", inputs[0].grid, grid, name=node.call_name, **clip)
        return layer(inputs[0].tensor)


class Gelu(Operator):
    """GELU by the error function, or with approximate=True by the hyperbolic tangent."""

    title = "GELU"
    litert = "GELU"
    stage = Stage.CLOSED
    raw: tuple[str, ...] = ("Gelu",)
    functions: tuple[str, ...] = ("gelu",)

    def group(self, node: Any, sources: Sequence[Group], plan: Any) -> Group:
        if sources[0].sign == "unsigned":
            return Group(node, self, sign="unsigned")
        return Group(node, self, sign="offset", minimum=_GELU_MINIMUM)

    def integers(self, node: Any, inputs: Sequence[Any], grid: Any, clip: dict[str, Any]) -> Any:
        function = "gelu_tanh" if getattr(node.operation, "approximate", False) else "gelu"
        layer = IntegerTable(function, inputs[0].grid, grid, name=node.call_name, **clip)
        return layer(inputs[0].tensor)
