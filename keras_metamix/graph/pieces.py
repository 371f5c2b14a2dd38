"""The layers that stand for one layer in the flat model: copies, and what a layer splits into."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
from keras import layers, tree

from keras_metamix.graph.copying import copy_of
from keras_metamix.graph.names import Names
from keras_metamix.graph.operators.batch_matmul import Product
from keras_metamix.graph.ownership import activation_name, config_of, keras_class
from keras_metamix.graph.refusals import Origin
from keras_metamix.layers.symmetric import Symmetric

GATES = {
    "silu": "sigmoid",
    "swish": "sigmoid",
    "hard_silu": "hard_sigmoid",
    "hard_swish": "hard_sigmoid",
}


class Pieces:
    """Makes the layers of one flat model, and remembers what each comes from.

    Args:
      model: the given one, functional.
    """

    def __init__(self, model: keras.Model):
        self.clones: dict[int, Any] = {}
        self.opened: dict[int, Any] = {}  # keeps what was opened alive: clones go by identity
        self.reserved: set[str] = {x.name for x in model.operations}  # of the model's own top level
        self.names: Names = Names(self.reserved)
        self.given: dict[int, str] = {}  # names of layers that were made on the way
        self.prefix = ""
        self.place = Origin("")  # of what is copied at present
        self.origins: dict[str, Origin] = {}

    def _call(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        """What stands for one call of one operation."""
        raise NotImplementedError

    def _name(self, name: str, user: str = "") -> str:
        """A name that no layer of the flat model has yet; `user` is what the user calls it."""
        found = f"{self.prefix}_{name}" if name in self.names and self.prefix else name
        return self._recorded(self.names.new(found), user or name)

    def _own_name(self, operation: Any) -> str:
        """The name of what stands for an operation: its own, wherever that is to be had."""
        if id(operation) in self.given:
            return self._recorded(self.given.pop(id(operation)), operation.name)
        if self.place.composite and not isinstance(operation, layers.Layer):
            # Keras numbers such an operation anew at each call.
            name = f"{self.place.composite}_{type(operation).__name__.lower()}"
            return self._recorded(self.names.new(name), name)
        if not self.prefix and operation.name in self.reserved:
            self.reserved.remove(operation.name)
            return self._recorded(operation.name, operation.name)
        return self._name(operation.name)

    def _recorded(self, found: str, name: str) -> str:
        self.origins[found] = dataclasses.replace(self.place, name=name)
        return found

    def _part(self, cls: Callable[..., Any], layer: Any, suffix: str, **arguments: Any) -> Any:
        """One of the layers that a layer splits into."""
        return cls(name=self._name(f"{layer.name}_{suffix}", layer.name), **arguments)

    def _last(self, cls: Callable[..., Any], operation: Any, **arguments: Any) -> Any:
        """The layer that gives the result of an operation of several steps."""
        name, activity = self._own_name(operation), _activity(operation)
        return cls(name=name, activity_regularizer=activity, **arguments)

    def _clone(self, operation: Any, **changes: Any) -> Any:
        """The one copy of an operation, with its state.

        A user's subclass that computes what its base does becomes its base.
        """
        if id(operation) not in self.clones:
            config = config_of(operation, changes) | changes
            name, cls = self._own_name(operation), keras_class(operation)
            self.clones[id(operation)] = copy_of(operation, name, cls, config)
        return self.clones[id(operation)]

    def _mac(self, layer: Any, inputs: Any) -> Any:
        if activation_name(layer.activation) == "linear":
            return self._clone(layer)(inputs)
        outputs = self._clone(layer, activation=None, activity_regularizer=None)(inputs)
        return self._activation(layer, outputs)

    def _activation(self, layer: Any, inputs: Any) -> Any:
        """The activation of a MAC layer, as a layer behind it."""
        function = layer.activation
        if isinstance(function, layers.Layer):
            return self._regularized(layer, self._call(function, inputs))
        new = layers.Activation(
            activation_name(function) or function,
            name=self._name(f"{layer.name}_activation"),
            activity_regularizer=_activity(layer),
        )
        self.opened[id(new)], self.given[id(new)] = new, new.name
        outer = self.place
        self.place = dataclasses.replace(self.place, owner=layer.name, cls="")
        try:
            return self._call(new, inputs)
        finally:
            self.place = outer

    def _regularized(self, layer: Any, outputs: Any) -> Any:
        """Applies the activity regularizer of a layer that is not there any more."""
        if _activity(layer) is None:
            return outputs
        new = self._part(layers.Activation, layer, "activity", activation="linear")
        new.activity_regularizer = _activity(layer)
        return tree.map_structure(new, outputs)

    def _gated(self, operation: Any, function: str, inputs: Any) -> Any:
        """The product of a tensor and its gate, which swish and hard-swish are."""
        name = self._own_name(operation)
        gate = layers.Activation(GATES[function], name=self._name(f"{name}_gate", operation.name))(
            inputs
        )
        activity = _activity(operation)
        return layers.Multiply(name=name, activity_regularizer=activity)([inputs, gate])

    def _chain(self, layer: Any, cls: type, tensors: list[Any]) -> Any:
        total = tensors[0]
        for number, tensor in enumerate(tensors[1:-1], 2):
            total = self._part(cls, layer, str(number))([total, tensor])
        return self._last(cls, layer)([total, tensors[-1]])

    def _halved_sum(self, layer: Any, tensors: list[Any]) -> Any:
        """The average of two tensors."""
        total = self._part(layers.Add, layer, "sum")(tensors)
        return self._last(layers.Rescaling, layer, scale=0.5)(total)

    def _product(self, operation: Any, args: tuple[Any, ...], product: Product) -> Any:
        """A matrix product, with a mark on what has to be symmetric."""
        layer = isinstance(operation, layers.Layer)
        factors = list(args[0] if layer else args)
        place = product.order[1]
        factors[place] = self._part(Symmetric, operation, "factor")(factors[place])
        return self._clone(operation)(factors) if layer else self._clone(operation)(*factors)

    def _separable(self, layer: Any, inputs: Any) -> Any:
        linear = activation_name(layer.activation) == "linear"
        if id(layer) not in self.clones:
            parts = _separated(layer, linear)
            self.clones[id(layer)] = tuple(
                self._part(cls, layer, name, **arguments)
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


def _activity(operation: Any) -> Any:
    """What an operation adds to the loss for its results, None for nothing."""
    return getattr(operation, "activity_regularizer", None)


def _separated(layer: Any, linear: bool) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Class and arguments of the two layers that a separable convolution is."""
    config = config_of(layer, ["activation"])
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
