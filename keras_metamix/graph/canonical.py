"""The few canonical layers that stand for a call of one of many in the flat model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import layers

from keras_metamix.graph.kinds import RELUS, Kind
from keras_metamix.graph.operations import MAC_LAYERS, kind
from keras_metamix.graph.operators.batch_matmul import product_of
from keras_metamix.graph.ownership import activation_name, config_of, negative_slope
from keras_metamix.graph.pieces import Call, Pieces, activity_of
from keras_metamix.graph.reasons import RELU_ARGUMENTS
from keras_metamix.graph.training_only import acts_in_training_alone
from keras_metamix.keras_internals import operation_of
from keras_metamix.layers.symmetric import Symmetric

GATES = {
    "silu": "sigmoid",
    "swish": "sigmoid",
    "hard_silu": "hard_sigmoid",
    "hard_swish": "hard_sigmoid",
}
_RAW_GATES = {"Silu": "silu", "HardSilu": "hard_silu"}
_POOL = ("pool_size", "strides", "padding", "data_format")


class Canonical(Pieces):
    """Replaces calls by those of canonical layers.

    Each rule takes a call and returns the tensors that replace its result, or None where it does
    not apply; `RULES` has their order.
    """

    def _separable(self, call: Call) -> Any:
        """A separable convolution: a depthwise and a pointwise one."""
        layer = call.operation
        linear = activation_name(layer.activation) == "linear"
        if id(layer) not in self.clones:
            parts = _separated(layer, linear)
            self.clones[id(layer)] = tuple(
                self._part(cls, layer, name, **arguments)
                for name, (cls, arguments) in parts.items()
            )
            self._separate_weights(layer, call.inputs)
        depthwise, pointwise = self.clones[id(layer)]
        outputs = pointwise(depthwise(call.inputs))
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

    def _mac(self, call: Call) -> Any:
        """A MAC layer: its activation becomes a layer behind it."""
        layer = call.operation
        if activation_name(layer.activation) == "linear":
            return self._clone(layer)(call.inputs)
        outputs = self._clone(layer, activation=None, activity_regularizer=None)(call.inputs)
        return self._activation(layer, outputs)

    def _chain(self, call: Call) -> Any:
        """A sum or product of more than two tensors: a chain of those of two."""
        tensors = call.inputs
        if len(tensors) <= 2:
            return None
        total = tensors[0]
        for number, tensor in enumerate(tensors[1:-1], 2):
            total = self._part(call.cls, call.operation, str(number))([total, tensor])
        return self._last(call.cls, call.operation)([total, tensors[-1]])

    def _halved_sum(self, call: Call) -> Any:
        """The average of two tensors."""
        if len(call.inputs) != 2:
            return None
        total = self._part(layers.Add, call.operation, "sum")(call.inputs)
        return self._last(layers.Rescaling, call.operation, scale=0.5)(total)

    def _clipped_relu(self, call: Call) -> Any:
        """The minimum of a ReLU and a constant."""
        if call.cls.__name__ != "Minimum" or len(call.args) != 2:
            return None
        for tensor, end in (call.args, call.args[::-1]):
            number = isinstance(end, (int, float)) and 0 < end < float("inf")
            if number and kind(operation_of(tensor)) in RELUS:
                return self._last(layers.ReLU, call.operation, max_value=float(end))(tensor)
        return None

    def _cropping(self, call: Call) -> Any:
        """A CenterCrop that only crops."""
        crop, shape = call.operation, call.inputs.shape
        if getattr(crop, "data_format", "") != "channels_last" or len(shape) != 4:
            return None
        excess = shape[1] - crop.height, shape[2] - crop.width
        if min(excess) < 0:
            return None
        borders = tuple((size // 2, size - size // 2) for size in excess)
        return self._last(layers.Cropping2D, crop, cropping=borders)(call.inputs)

    def _leaky_relu(self, call: Call) -> Any:
        """Every leaky ReLU, one layer a call: what it computes depends on its input's grid."""
        slope = negative_slope(call.operation, call.cls)
        if slope is None:
            return None
        return self._last(layers.LeakyReLU, call.operation, negative_slope=slope)(call.inputs)

    def _padded_pool(self, call: Call) -> Any:
        """An average pool over a border, one layer a call likewise."""
        if call.operation.padding != "same":
            return None
        config = {k: v for k, v in config_of(call.operation).items() if k in _POOL}
        return self._last(layers.AveragePooling2D, call.operation, **config)(call.inputs)

    def _product(self, call: Call) -> Any:
        """A matrix product, with a mark on the factor that has to be symmetric."""
        operation, product = call.operation, product_of(call.operation, call.tensors)
        if product is None:
            return None
        layer = isinstance(operation, layers.Layer)
        factors = list(call.inputs if layer else call.args)
        place = product.order[1]
        factors[place] = self._part(Symmetric, operation, "factor")(factors[place])
        return self._clone(operation)(factors) if layer else self._clone(operation)(*factors)

    def _gated(self, call: Call) -> Any:
        """Swish and hard-swish: the product of a tensor and its gate."""
        operation = call.operation
        function = _RAW_GATES.get(call.cls.__name__, "")
        if issubclass(call.cls, layers.Activation):
            function = activation_name(operation.activation) or ""
        if function not in GATES or len(call.args) != 1:
            return None
        name = self._own_name(operation)
        gate = layers.Activation(GATES[function], name=self._name(f"{name}_gate", operation.name))
        gated = layers.Multiply(name=name, activity_regularizer=activity_of(operation))
        return gated([call.inputs, gate(call.inputs)])

    def _known(self, call: Call) -> Any:
        """An operation that has a kind: its copy."""
        operation, cls, found = call.operation, call.cls, kind(call.operation)
        if found is None:
            return None
        if issubclass(cls, layers.Activation) and found is not Kind.FLOAT:
            # TensorFlow's relu is Keras' relu, and only the latter can be saved.
            name = activation_name(operation.activation)
            return self._clone(operation, activation=name)(*call.args, **call.kwargs)
        if found in RELUS and cls.__name__ == "ReLU" and not issubclass(cls, layers.Layer):
            # What keras.activations.relu makes of a symbolic tensor.
            arguments = {key: getattr(operation, key) for key in RELU_ARGUMENTS}
            return self._last(layers.ReLU, operation, **arguments)(*call.args)
        return self._clone(operation)(*call.args, **call.kwargs)

    def _training_only(self, call: Call) -> Any:
        """A layer that acts in training alone: its copy."""
        if not acts_in_training_alone(call.operation, call.tensors):
            return None
        return self._clone(call.operation)(*call.args, **call.kwargs)


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


# What a rule is for, and the rule. The first one that applies replaces the call.
Rule = Callable[[Any, Call], Any]
RULES: tuple[tuple[type | tuple[type, ...], Rule], ...] = (
    (layers.SeparableConv2D, Canonical._separable),
    (MAC_LAYERS, Canonical._mac),
    ((layers.Add, layers.Multiply), Canonical._chain),
    (layers.Average, Canonical._halved_sum),
    (object, Canonical._clipped_relu),
    (layers.CenterCrop, Canonical._cropping),
    (object, Canonical._leaky_relu),
    (layers.AveragePooling2D, Canonical._padded_pool),
    (object, Canonical._product),
    (object, Canonical._gated),
    (object, Canonical._known),
    (object, Canonical._training_only),
)
