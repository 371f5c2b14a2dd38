"""Brings any functional Keras model to the few layers that the rewrite knows, in one flat graph.

Every step keeps the arithmetic: the outputs are those of the given model, bit by bit.

- Models inside models are opened, and so are layers that only call other layers.
- The activation of a MAC layer becomes a layer of its own behind it.
- A separable convolution becomes a depthwise and a pointwise one.
- swish and hard-swish become the product of the tensor and its gate, as the device computes them.
- Sums and products of more than two tensors become chains of two.

What else a layer carries stays with it: what trains, regularizers, constraints, seeds. The activity
regularizer of a layer that is split acts on the same values as before, on the last of its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import keras
from keras import layers, tree

from keras_metamix.checks import one_line, shown
from keras_metamix.graph.copying import copy_of
from keras_metamix.graph.names import Names
from keras_metamix.graph.operations import (
    FLOAT_LAYERS,
    MAC_LAYERS,
    UnsupportedLayerError,
    function_name,
    is_keras_own,
    kind,
)
from keras_metamix.graph.topology import as_functional, inputs_like

_GATES = {"silu": "sigmoid", "hard_silu": "hard_sigmoid"}
_RAW_GATES = {"Silu": "silu", "HardSilu": "hard_silu"}
_CHAINS = (layers.Add, layers.Multiply)
_OPENING_ERRORS = (TypeError, ValueError, AttributeError, RuntimeError)


def expand(
    model: keras.Model, float_layers: frozenset[str] = frozenset()
) -> tuple[keras.Model, frozenset[str]]:
    """The flat model of the same arithmetic; the given model stays as it is.

    Args:
      model: functional or Sequential, also with models or composite layers inside.
      float_layers: names of layers that are kept as they are.

    Returns:
      The flat model, and the names that the kept layers have there.

    Raises:
      TypeError: the model has no graph.
      UnsupportedLayerError: a layer that cannot be opened.
      ValueError: a name in float_layers that no layer has.
    """
    return _Expansion(as_functional(model), float_layers).run()


class _Expansion:
    """One walk over a model."""

    def __init__(self, model: keras.Model, float_layers: frozenset[str]):
        self.model, self.float_layers = model, float_layers
        self.clones: dict[int, Any] = {}
        self.opened: dict[int, Any] = {}  # keeps what was opened alive: clones go by identity
        self.reserved = {x.name for x in model.operations}  # of the model's own top level
        self.names = Names(self.reserved)
        self.prefix = ""
        self.composite = ""  # the composite layer whose insides are copied at present
        self.met: set[str] = set()
        self.kept: set[str] = set()

    def run(self) -> tuple[keras.Model, frozenset[str]]:
        inputs = inputs_like(self.model.input)
        outputs = self._replay(self.model, tree.flatten(inputs))
        if unknown := self.float_layers - self.met:
            raise ValueError(
                f"float_layers: expected names of layers of {self.model.name!r}, found "
                f"{shown(sorted(unknown))}."
            )
        model = keras.Model(inputs, outputs, name=self.model.name)
        if not self.model.trainable:
            model.trainable = False
        return model, frozenset(self.kept)

    def _replay(self, model: Any, tensors: list[Any]) -> Any:
        return model._run_through_graph(tensors, call_fn=self._call)

    def _call(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        """What stands for one call of one operation."""
        if "inputs" in kwargs and not args:
            args = (kwargs.pop("inputs"),)
        if self.composite and kwargs.get("training") is False:
            raise UnsupportedLayerError(
                self.composite,
                f"Layer {self.composite!r} is not supported: it calls {operation.name!r} with "
                "training=False, which a functional model does not keep.",
            )
        if type(operation).__module__.startswith("keras_metamix.layers."):
            raise UnsupportedLayerError(
                operation.name,
                f"Layer {operation.name!r} ({type(operation).__name__}) is quantized already: "
                "expected a float model.",
            )
        if names := {operation.name, f"{self.prefix}_{operation.name}"} & self.float_layers:
            self.met |= names
            _require_copy(operation)
            clone = self._clone(operation)
            self.kept.add(clone.name)
            return clone(*args, **kwargs)
        if isinstance(operation, keras.Model):
            return self._regularized(operation, self._open_model(operation, args))
        if isinstance(operation, layers.SeparableConv2D):
            return self._separable(operation, args[0])
        if isinstance(operation, MAC_LAYERS) and is_keras_own(operation):
            return self._mac(operation, args[0])
        if isinstance(operation, _CHAINS) and len(args[0]) > 2:
            return self._chain(operation, args[0])
        if isinstance(operation, layers.Average) and len(args[0]) == 2:
            total = self._new(layers.Add, f"{operation.name}_sum")(args[0])
            return self._last(layers.Rescaling, operation, scale=0.5)(total)
        function = self._function(operation)
        if function in _GATES and len(args) == 1:
            name = self._own_name(operation)
            return self._gated(name, function, args[0], _activity(operation))
        if kind(operation) is None and not isinstance(operation, FLOAT_LAYERS):
            return self._regularized(operation, self._open_layer(operation, args, kwargs))
        return self._clone(operation)(*args, **kwargs)

    def _function(self, operation: Any) -> str:
        if isinstance(operation, layers.Activation):
            return function_name(operation.activation)
        return _RAW_GATES.get(type(operation).__name__, "")

    # --- pieces ----------------------------------------------------------------------------

    def _name(self, name: str) -> str:
        """A name that no layer of the flat model has yet."""
        if name in self.names and self.prefix:
            name = f"{self.prefix}_{name}"
        return self.names.new(name)

    def _own_name(self, operation: Any) -> str:
        """The name of what stands for an operation: its own, wherever that is to be had."""
        if not self.prefix and operation.name in self.reserved:
            self.reserved.remove(operation.name)
            return operation.name
        return self._name(operation.name)

    def _new(self, cls: Callable[..., Any], name: str, **arguments: Any) -> Any:
        return cls(name=self._name(name), **arguments)

    def _last(self, cls: Callable[..., Any], operation: Any, **arguments: Any) -> Any:
        """The layer that gives the result of an operation of several steps."""
        name, activity = self._own_name(operation), _activity(operation)
        return cls(name=name, activity_regularizer=activity, **arguments)

    def _clone(self, operation: Any, **changes: Any) -> Any:
        """The one copy of an operation, with its state."""
        if id(operation) not in self.clones:
            name = self._own_name(operation)
            self.clones[id(operation)] = copy_of(operation, name, **changes)
        return self.clones[id(operation)]

    def _mac(self, layer: Any, inputs: Any) -> Any:
        if function_name(layer.activation) == "linear":
            return self._clone(layer)(inputs)
        outputs = self._clone(layer, activation=None, activity_regularizer=None)(inputs)
        return self._activation(layer, outputs)

    def _activation(self, layer: Any, inputs: Any) -> Any:
        """The activation of a MAC layer, as a layer behind it."""
        name, function = f"{layer.name}_activation", layer.activation
        if function_name(function) in _GATES:
            gate = function_name(function)
            return self._gated(self._name(name), gate, inputs, _activity(layer))
        if isinstance(function, layers.Layer):
            return self._regularized(layer, self._call(function, inputs))
        activity = _activity(layer)
        new = self._new(layers.Activation, name, activation=function, activity_regularizer=activity)
        return new(inputs)

    def _regularized(self, layer: Any, outputs: Any) -> Any:
        """Applies the activity regularizer of a layer that is not there any more."""
        if _activity(layer) is None:
            return outputs
        name = f"{layer.name}_activity"
        new = self._new(layers.Activation, name, activation="linear")
        new.activity_regularizer = _activity(layer)
        return tree.map_structure(new, outputs)

    def _gated(self, name: str, function: str, inputs: Any, activity: Any) -> Any:
        gate = self._new(layers.Activation, f"{name}_gate", activation=_GATES[function])(inputs)
        return layers.Multiply(name=name, activity_regularizer=activity)([inputs, gate])

    def _chain(self, layer: Any, tensors: list[Any]) -> Any:
        total = tensors[0]
        for number, tensor in enumerate(tensors[1:-1], 2):
            total = self._new(type(layer), f"{layer.name}_{number}")([total, tensor])
        return self._last(type(layer), layer)([total, tensors[-1]])

    def _separable(self, layer: Any, inputs: Any) -> Any:
        linear = function_name(layer.activation) == "linear"
        if id(layer) not in self.clones:
            parts = _separated(layer, linear)
            self.clones[id(layer)] = tuple(
                self._new(cls, f"{layer.name}_{name}", **arguments)
                for name, (cls, arguments) in parts.items()
            )
            self._separate_weights(layer, inputs)
        depthwise, pointwise = self.clones[id(layer)]
        outputs = pointwise(depthwise(inputs))
        return outputs if linear else self._activation(layer, outputs)

    def _separate_weights(self, layer: Any, inputs: Any) -> None:
        depthwise, pointwise = self.clones[id(layer)]
        depthwise.build(inputs.shape)
        pointwise.build(depthwise.compute_output_shape(inputs.shape))
        pairs = [
            (layer.depthwise_kernel, depthwise.kernel),
            (layer.pointwise_kernel, pointwise.kernel),
        ]
        if layer.use_bias:
            pairs.append((layer.bias, pointwise.bias))
        for original, copy in pairs:
            copy.assign(original)
            copy.trainable = original.trainable

    # --- opening ---------------------------------------------------------------------------

    def _open_model(self, model: Any, args: tuple[Any, ...]) -> Any:
        try:
            functional = self.opened.setdefault(id(model), as_functional(model))
        except TypeError:
            raise UnsupportedLayerError(
                model.name,
                f"Layer {model.name!r} is a subclassed model, which has no graph to open: build "
                "it with the functional API, or name it in float_layers.",
            ) from None
        return self._inside(model.name, functional, tree.flatten(args))

    def _inside(self, name: str, functional: Any, tensors: list[Any]) -> Any:
        outer, self.prefix = self.prefix, name
        try:
            return self._replay(functional, tensors)
        finally:
            self.prefix = outer

    def _open_layer(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs a composite layer's own `call` on symbolic tensors, which shows its graph."""
        label = f"Layer {layer.name!r} ({type(layer).__name__})"
        hint = "name it in float_layers to leave it in float, which cannot be exported"
        if not isinstance(layer, layers.Layer):
            raise UnsupportedLayerError(layer.name, f"{label} is not supported: {hint}.")
        inner = [s for s in layer._flatten_layers(include_self=False) if s is not layer]
        held = {id(v) for s in inner for v in s.weights}
        if own := [v.name for v in layer.weights if id(v) not in held]:
            inside = f" of {self.composite!r}" if self.composite else ""
            raise UnsupportedLayerError(
                layer.name,
                f"{label}{inside} is not supported: it computes with weights of its own, "
                f"{shown(own)}; {hint}.",
            )
        kwargs.pop("training", None)  # that of the whole model wins in Keras
        tensors = [t for t in tree.flatten((args, kwargs)) if keras.utils.is_keras_tensor(t)]
        fresh = [keras.Input(batch_shape=t.shape, dtype=t.dtype) for t in tensors]
        twins = {id(t): f for t, f in zip(tensors, fresh, strict=True)}
        inner_args, inner_kwargs = tree.map_structure(lambda t: twins.get(id(t), t), (args, kwargs))
        try:
            functional = keras.Model(fresh, layer.call(*inner_args, **inner_kwargs))
        except _OPENING_ERRORS as error:
            reason = one_line(str(error).strip().partition("\n")[0], 120)
            raise UnsupportedLayerError(
                layer.name, f"{label} is not supported: it could not be opened ({reason}); {hint}."
            ) from error
        outer, self.composite = self.composite, layer.name
        try:
            return self._inside(layer.name, self.opened.setdefault(id(fresh), functional), tensors)
        finally:
            self.composite = outer


def float_names(float_layers: Any) -> frozenset[str]:
    """`float_layers` as a set of names.

    Raises:
      TypeError: anything but a collection of names.
    """
    if not isinstance(float_layers, str) and isinstance(float_layers, Iterable):
        names = list(float_layers)
        if all(isinstance(name, str) for name in names):
            return frozenset(names)
    raise TypeError(f"float_layers: expected a list of layers' names, found {shown(float_layers)}.")


def _require_copy(operation: Any) -> None:
    """Raises UnsupportedLayerError for a Python lambda, which Keras neither copies nor loads."""
    function = getattr(operation, "function", None)
    if isinstance(operation, layers.Lambda) and getattr(function, "__name__", "") == "<lambda>":
        raise UnsupportedLayerError(
            operation.name,
            f"Layer {operation.name!r} (Lambda) holds a Python lambda, which Keras neither copies "
            "nor loads: expected a layer class, or a named function.",
        )


def _activity(operation: Any) -> Any:
    """What an operation adds to the loss for its results, None for nothing."""
    return getattr(operation, "activity_regularizer", None)


def _separated(layer: Any, linear: bool) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Class and arguments of the two layers that a separable convolution is."""
    config = layer.get_config()
    common = {name: config[name] for name in ("data_format", "trainable", "dtype")}
    what = ("initializer", "regularizer", "constraint")
    depthwise = {name: config[name] for name in ("kernel_size", "strides", "padding")}
    depthwise |= {name: config[name] for name in ("depth_multiplier", "dilation_rate")}
    depthwise |= {f"depthwise_{name}": config[f"depthwise_{name}"] for name in what}
    pointwise = {name: config[name] for name in ("filters", "use_bias")}
    pointwise |= {f"kernel_{name}": config[f"pointwise_{name}"] for name in what}
    pointwise |= {f"bias_{name}": config[f"bias_{name}"] for name in what}
    pointwise |= {"activity_regularizer": config["activity_regularizer"] if linear else None}
    return {
        "depthwise": (layers.DepthwiseConv2D, common | depthwise | {"use_bias": False}),
        "pointwise": (layers.Conv2D, common | pointwise | {"kernel_size": 1}),
    }
