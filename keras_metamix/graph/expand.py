"""Brings any functional Keras model to the few layers that the rewrite knows, in one flat graph.

Every step keeps the arithmetic: the outputs are those of the given model, bit by bit.

- Models inside models are opened, and so are layers that only call other layers.
- The activation of a MAC layer becomes a layer of its own behind it.
- A separable convolution becomes a depthwise and a pointwise one.
- Every leaky ReLU becomes a LeakyReLU; it and an average pool are one layer for each call.
- Slices, splits, transposes, stacks and repeats become Slice, Permute, Reshape and Concatenate.
- swish and hard-swish become the product of the tensor and its gate, as the device computes them.
- Sums and products of more than two tensors become chains of two.
- 1-D layers become 2-D ones. Sequences are images of one row between them, and sequences again
  where anything else reads them.

What else a layer carries stays with it: what trains, regularizers, constraints, seeds. The activity
regularizer of a layer that is split acts on the same values as before, on the last of its parts.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable
from typing import Any

import keras
from keras import layers, tree

from keras_metamix.checks import shown
from keras_metamix.graph.kinds import RELUS, Kind
from keras_metamix.graph.moving import Moving, NotMovedError
from keras_metamix.graph.opening import NotOpenedError, opened
from keras_metamix.graph.operations import MAC_LAYERS, kind
from keras_metamix.graph.operators.batch_matmul import product_of
from keras_metamix.graph.ownership import (
    activation_name,
    config_of,
    is_keras_own,
    keras_class,
    negative_slope,
    overrides,
)
from keras_metamix.graph.pieces import GATES
from keras_metamix.graph.reasons import (
    RELU_ARGUMENTS,
    changed_by_keras,
    described,
    not_copied,
    reason,
)
from keras_metamix.graph.refusals import (
    Origin,
    Refusal,
    Refused,
    UnsupportedLayerError,
    place_behind,
    why_none,
)
from keras_metamix.graph.sequences import IN_TIME, on_row
from keras_metamix.graph.topology import as_functional, inputs_like
from keras_metamix.graph.training_only import acts_in_training_alone, returns_what_it_is_given
from keras_metamix.keras_internals import call_of, layers_inside, operation_of, takes_training

_RAW_GATES = {"Silu": "silu", "HardSilu": "hard_silu"}
_POOL = ("pool_size", "strides", "padding", "data_format")
_CHAINS = (layers.Add, layers.Multiply)
_TRAINS_ALWAYS = (
    "called with training=True, which a plain call of the model obeys, and neither predict nor a "
    "file does; leave the argument out: fit hands it on. For Monte Carlo dropout call the "
    "quantized model with training=True"
)


@dataclasses.dataclass(frozen=True)
class Expanded:
    """What an expansion found.

    Attributes:
      model: flat; a `Refused` stands for each operation that cannot be opened.
      kept: names that the layers left in float have there.
      refused: why an operation cannot be taken, by its name there.
      origins: what the user calls each operation, by its name there.
    """

    model: keras.Model
    kept: frozenset[str]
    refused: dict[str, Refusal]
    origins: dict[str, Origin]


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
      UnsupportedLayerError: layers that cannot be opened; says so of each.
      ValueError: a name in float_layers that no layer has.
    """
    found = expansion(model, float_layers)
    if found.refused:
        raise UnsupportedLayerError(model.name, found.refused.values())
    return found.model, found.kept


def expansion(model: keras.Model, float_layers: frozenset[str] = frozenset()) -> Expanded:
    """As `expand`, with what cannot be opened left in its place.

    Raises:
      TypeError: the model has no graph.
      ValueError: a name in float_layers that no layer has.
    """
    return _Expansion(as_functional(model), float_layers).run()


class _Expansion(Moving):
    """One walk over a model."""

    def __init__(self, model: keras.Model, float_layers: frozenset[str]):
        super().__init__(model)
        self.model, self.float_layers = model, float_layers
        self.refused: dict[str, Refusal] = {}
        self.stand_ins: dict[int, Refused] = {}
        self.met: set[str] = set()
        self.kept: set[str] = set()
        self.in_time = any(isinstance(layer, IN_TIME) for layer in layers_inside(model))
        # By what each belongs to, which they keep alive.
        self.rows: dict[int, tuple[Any, Any]] = {}  # of sequences
        self.on_rows: dict[int, tuple[Any, Any]] = {}  # of operations on sequences

    def run(self) -> Expanded:
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
        return Expanded(model, frozenset(self.kept), self.refused, self.origins)

    def _replay(self, model: Any, tensors: list[Any]) -> Any:
        return model._run_through_graph(tensors, call_fn=self._call)

    def _call(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        """What stands for one call of one operation."""
        if "inputs" in kwargs and not args:
            args = (kwargs.pop("inputs"),)
        if self.place.composite:
            kwargs.pop("training", None)  # it is the model's: `opened` has seen to that
        if type(operation).__module__.startswith("keras_metamix.layers."):
            raise ValueError(
                f"Layer {operation.name!r} ({type(operation).__name__}) is quantized already: "
                "expected a float model."
            )
        if self._is_named(operation.name):
            return self._in_float(operation, args, kwargs)
        if changed := changed_by_keras(operation):
            return self._refuse(operation, args, kwargs, changed, may_stay=False)
        if _trains_always(operation, kwargs.get("training")):
            return self._refuse(operation, args, kwargs, _TRAINS_ALWAYS)
        if isinstance(operation, keras.Model):
            return self._regularized(operation, self._open_model(operation, args, kwargs))
        return self._replaced(operation, keras_class(operation), args, kwargs)

    def _replaced(
        self, operation: Any, cls: type | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """What stands for a layer or a raw operation whose arithmetic is that of `cls`."""
        cls = cls or type(None)
        if self.in_time and _are_sequences(args, kwargs):
            if issubclass(cls, layers.Flatten) or cls.__name__ == "Reshape":
                _, source = self.rows.get(id(args[0]), args[:1] * 2)
                return self._clone(operation)(source, *args[1:], **kwargs)
            rows = tree.map_structure(self._row, (args, kwargs))
            if (twin := self._on_row(operation, *_tensors(*rows))) is not None:
                return self._sequence(operation, self._on_rows(operation, twin, *rows))
        try:
            if (moved := self._moved(operation, cls, args, kwargs)) is not None:
                return moved
        except NotMovedError as error:
            why = why_none(operation, _tensors(args, kwargs), str(error))
            return self._refuse(operation, args, kwargs, why)
        if issubclass(cls, layers.SeparableConv2D):
            return self._separable(operation, args[0])
        if issubclass(cls, MAC_LAYERS):
            return self._mac(operation, args[0])
        if issubclass(cls, _CHAINS) and len(args[0]) > 2:
            return self._chain(operation, cls, args[0])
        if issubclass(cls, layers.Average) and len(args[0]) == 2:
            return self._halved_sum(operation, args[0])
        if cls.__name__ == "Minimum" and (end := self._relu_end(args)) is not None:
            return self._last(layers.ReLU, operation, max_value=end[1])(end[0])
        if issubclass(cls, layers.CenterCrop) and (borders := _cropped(operation, args[0])):
            return self._last(layers.Cropping2D, operation, cropping=borders)(args[0])
        if (slope := negative_slope(operation, cls)) is not None:
            # One for each call: what it computes depends on the grid of its input.
            return self._last(layers.LeakyReLU, operation, negative_slope=slope)(args[0])
        if issubclass(cls, layers.AveragePooling2D) and operation.padding == "same":
            config = {k: v for k, v in config_of(operation).items() if k in _POOL}
            return self._last(layers.AveragePooling2D, operation, **config)(args[0])
        if (product := product_of(operation, _tensors(args, kwargs))) is not None:
            return self._product(operation, args, product)
        function = self._function(operation, cls)
        if function in GATES and len(args) == 1:
            return self._gated(operation, function, args[0])
        if kind(operation) is not None:
            return self._known(operation, cls, args, kwargs)
        if acts_in_training_alone(operation, _tensors(args, kwargs)):
            return self._clone(operation)(*args, **kwargs)
        return self._regularized(operation, self._open_layer(operation, args, kwargs))

    def _known(
        self, operation: Any, cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if issubclass(cls, layers.Activation) and kind(operation) is not Kind.FLOAT:
            # TensorFlow's relu is Keras' relu, and only the latter can be saved.
            name = activation_name(operation.activation)
            return self._clone(operation, activation=name)(*args, **kwargs)
        if (
            kind(operation) in RELUS
            and cls.__name__ == "ReLU"
            and not issubclass(cls, layers.Layer)
        ):
            # What keras.activations.relu makes of a symbolic tensor.
            arguments = {key: getattr(operation, key) for key in RELU_ARGUMENTS}
            return self._last(layers.ReLU, operation, **arguments)(*args)
        return self._clone(operation)(*args, **kwargs)

    def _is_named(self, name: str) -> bool:
        """Whether float_layers asks for a layer."""
        names = {name, f"{self.prefix}_{name}"} & self.float_layers
        self.met |= names
        return bool(names)

    def _in_float(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if why := not_copied(operation):
            return self._refuse(operation, args, kwargs, why, may_stay=False)
        clone = self._clone(operation)
        self.kept.add(clone.name)
        if isinstance(operation, layers.Layer):
            inside = [operation, *layers_inside(operation)]
            self.met |= self.float_layers & {layer.name for layer in inside}
        return clone(*args, **kwargs)

    def _refuse(
        self,
        operation: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        why: str,
        may_stay: bool = True,
    ) -> Any:
        """Says why an operation cannot be taken, and goes on behind it."""
        if id(operation) not in self.stand_ins:
            stuck = not_copied(operation) if may_stay else ""
            refusal = dataclasses.replace(self.place, name=operation.name).refusal(
                operation, why, place_behind(_tensors(args, kwargs), self.origins), may_stay, stuck
            )
            name = self._own_name(operation)
            self.refused[name] = refusal
            self.stand_ins[id(operation)] = Refused(operation, name)
        return self.stand_ins[id(operation)](*args, **kwargs)

    def _relu_end(self, args: tuple[Any, ...]) -> tuple[Any, float] | None:
        """The ReLU and the constant of a minimum of these, None for any other."""
        for tensor, end in (args, args[::-1]) if len(args) == 2 else ():
            number = isinstance(end, (int, float)) and 0 < end < float("inf")
            if number and kind(operation_of(tensor)) in RELUS:
                return tensor, float(end)
        return None

    def _function(self, operation: Any, cls: type) -> str:
        if issubclass(cls, layers.Activation):
            return activation_name(operation.activation) or ""
        return _RAW_GATES.get(cls.__name__, "")

    # --- sequences -------------------------------------------------------------------------

    def _row(self, value: Any) -> Any:
        """A sequence as an image of one row; whatever is no sequence as it is."""
        if not keras.utils.is_keras_tensor(value):
            return value
        if id(value) not in self.rows:
            operation, source = operation_of(value), value
            plain = getattr(operation, "activity_regularizer", None) is None
            if plain and type(operation).__name__ == "Reshape":  # both in one
                (source,) = call_of(value).input_tensors
            name = self._name(f"{operation.name}_row", operation.name)
            row = layers.Reshape((1, *value.shape[1:]), name=name)(source)
            self.rows[id(value)] = value, row
        return self.rows[id(value)][1]

    def _on_row(self, operation: Any, row: Any, *_: Any) -> Any:
        """The one operation on rows that an operation on sequences is."""
        if id(operation) not in self.on_rows:
            self.on_rows[id(operation)] = operation, on_row(operation, row.shape)
        return self.on_rows[id(operation)][1]

    def _on_rows(self, operation: Any, twin: Any, args: Any, kwargs: Any) -> Any:
        """What stands for a call on sequences, on their rows."""
        if getattr(operation, "padding", "") == "causal":
            reach = (operation.kernel_size[0] - 1) * operation.dilation_rate[0]
            border = {"padding": ((0, 0), (reach, 0))}
            args = (self._part(layers.ZeroPadding2D, operation, "causal", **border)(args[0]),)
        kwargs = {key: value for key, value in kwargs.items() if key != "mask"}  # it is None
        outer, self.place = self.place, dataclasses.replace(self.place, cls=described(operation))
        try:
            return self._replaced(twin, keras_class(twin), args, kwargs)
        finally:
            self.place = outer

    def _sequence(self, operation: Any, row: Any) -> Any:
        """A row as the sequence that it is; what has no time is the result already."""
        if len(row.shape) != 4:
            return row
        sequence = self._part(layers.Reshape, operation, "sequence", target_shape=row.shape[2:])(
            row
        )
        self.rows[id(sequence)] = sequence, row
        return sequence

    # --- opening ---------------------------------------------------------------------------

    def _open_model(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if "call" in overrides(model):
            why = (
                "a subclassed model, whose call has no graph; put keras.Model(x, model.call(x)) of "
                "x = keras.Input(...) in its place, which has the same layers and weights"
            )
            return self._refuse(model, args, kwargs, why)
        functional = self.opened.setdefault(id(model), as_functional(model))
        place = dataclasses.replace(self.place, around=repr(model.name))
        return self._inside(model.name, place, functional, tree.flatten(args))

    def _inside(self, name: str, place: Origin, functional: Any, tensors: list[Any]) -> Any:
        outer = self.prefix, self.place
        self.prefix, self.place = name, place
        try:
            return self._replay(functional, tensors)
        finally:
            self.prefix, self.place = outer

    def _open_layer(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Replays what a composite layer calls."""
        users = layers.Activation, layers.Lambda  # Keras' own classes, of functions that are not
        own = is_keras_own(type(layer)) and not isinstance(layer, users)
        if not isinstance(layer, layers.Layer) or (own and reason(layer)):
            return self._refuse(layer, args, kwargs, why_none(layer, _tensors(args, kwargs)))
        try:
            functional, tensors = opened(layer, args, kwargs)
        except NotOpenedError as error:
            tensors = _tensors(args, kwargs)
            why = why_none(layer, tensors) if own else str(error)
            if own or returns_what_it_is_given(layer, tensors):
                why = not_copied(layer) or why
            return self._refuse(layer, args, kwargs, why)
        self.opened[id(functional)] = functional
        label = dataclasses.replace(self.place, name=layer.name).label(layer)
        place = Origin("", composite=layer.name, around=label, stuck=not_copied(layer))
        return self._inside(layer.name, place, functional, tensors)


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


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    return [t for t in tree.flatten((args, kwargs)) if keras.utils.is_keras_tensor(t)]


def _are_sequences(args: Any, kwargs: Any) -> bool:
    found = _tensors(args, kwargs)
    return bool(found) and all(len(tensor.shape) == 3 for tensor in found)


def _trains_always(operation: Any, flag: Any) -> bool:
    """Whether the user hands training=True to something that acts in training."""
    if flag is not True or not isinstance(operation, layers.Layer):
        return False
    if inspect.signature(operation.call).parameters["training"].default is True:
        return False  # Keras notes down the default of a `call`, too
    own = [] if isinstance(operation, keras.Model) else [operation]
    parts = [*own, *layers_inside(operation)]
    return any(takes_training(p) and not isinstance(p, keras.Model) for p in parts)


def _cropped(crop: Any, tensor: Any) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """What a CenterCrop takes off each side; None where it resizes, too."""
    if getattr(crop, "data_format", "") != "channels_last" or len(tensor.shape) != 4:
        return None
    excess = tensor.shape[1] - crop.height, tensor.shape[2] - crop.width
    if min(excess) < 0:
        return None
    (top, left) = (size // 2 for size in excess)
    return (top, excess[0] - top), (left, excess[1] - left)
