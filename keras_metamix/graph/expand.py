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

Whatever else a layer has stays with it: what trains, regularizers, constraints, seeds. The activity
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
from keras_metamix.graph.canonical import RULES, Canonical, Rule
from keras_metamix.graph.data_movement import DataMovement, UnsupportedMovementError
from keras_metamix.graph.opening import NotOpenedError, opened
from keras_metamix.graph.ownership import is_keras_own, overrides
from keras_metamix.graph.pieces import Call
from keras_metamix.graph.reasons import changed_by_keras, not_copied, reason
from keras_metamix.graph.refusals import (
    Origin,
    Refusal,
    Refused,
    UnsupportedLayerError,
    place_behind,
    why_none,
)
from keras_metamix.graph.sequence_rows import SequenceRows
from keras_metamix.graph.topology import as_functional, inputs_like
from keras_metamix.graph.training_only import returns_what_it_is_given
from keras_metamix.keras_internals import layers_inside, takes_training

_TRAINS_ALWAYS = (
    "called with training=True, which a plain call of the model obeys, and neither predict nor a "
    "file does; leave the argument out: fit passes it on. For Monte Carlo dropout call the "
    "quantized model with training=True"
)


@dataclasses.dataclass(frozen=True)
class Expanded:
    """What an expansion found.

    Attributes:
      model: flat; with a `Refused` in place of each operation that cannot be opened.
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


class _Expansion(DataMovement, SequenceRows, Canonical):
    """One walk over a model."""

    def __init__(self, model: keras.Model, float_layers: frozenset[str]):
        super().__init__(model)
        self.model, self.float_layers = model, float_layers
        self.refused: dict[str, Refusal] = {}
        self.stand_ins: dict[int, Refused] = {}
        self.met: set[str] = set()
        self.kept: set[str] = set()

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
        """What replaces one call of one operation."""
        if "inputs" in kwargs and not args:
            args = (kwargs.pop("inputs"),)
        if self.place.composite:
            kwargs.pop("training", None)  # it is the model's: `opened` has seen to that
        if type(operation).__module__.startswith("keras_metamix.layers."):
            raise ValueError(
                f"Layer {operation.name!r} ({type(operation).__name__}) is quantized already: "
                "expected a float model."
            )
        call = Call.of(operation, args, kwargs)
        if self._is_named(operation.name):
            return self._in_float(call)
        if changed := changed_by_keras(operation):
            return self._refuse(call, changed, may_stay=False)
        if _trains_always(operation, kwargs.get("training")):
            return self._refuse(call, _TRAINS_ALWAYS)
        if isinstance(operation, keras.Model):
            return self._regularized(operation, self._open_model(call))
        return self._replaced(call)

    def _replaced(self, call: Call) -> Any:
        """What replaces a call: the result of the first rule that applies to it."""
        try:
            for classes, rule in _RULES:
                if issubclass(call.cls, classes) and (found := rule(self, call)) is not None:
                    return found
        except UnsupportedMovementError as error:
            return self._refuse(call, why_none(call.operation, call.tensors, str(error)))
        return self._regularized(call.operation, self._open_layer(call))

    def _is_named(self, name: str) -> bool:
        """Whether float_layers asks for a layer."""
        names = {name, f"{self.prefix}_{name}"} & self.float_layers
        self.met |= names
        return bool(names)

    def _in_float(self, call: Call) -> Any:
        operation = call.operation
        if why := not_copied(operation):
            return self._refuse(call, why, may_stay=False)
        clone = self._clone(operation)
        self.kept.add(clone.name)
        if isinstance(operation, layers.Layer):
            inside = [operation, *layers_inside(operation)]
            self.met |= self.float_layers & {layer.name for layer in inside}
        return clone(*call.args, **call.kwargs)

    def _refuse(self, call: Call, why: str, may_stay: bool = True) -> Any:
        """Records why an operation cannot be taken, and goes on behind it."""
        operation = call.operation
        if id(operation) not in self.stand_ins:
            stuck = not_copied(operation) if may_stay else ""
            refusal = dataclasses.replace(self.place, name=operation.name).refusal(
                operation, why, place_behind(call.tensors, self.origins), may_stay, stuck
            )
            name = self._own_name(operation)
            self.refused[name] = refusal
            self.stand_ins[id(operation)] = Refused(operation, name)
        return self.stand_ins[id(operation)](*call.args, **call.kwargs)

    def _open_model(self, call: Call) -> Any:
        model = call.operation
        if "call" in overrides(model):
            why = (
                "a subclassed model, whose call has no graph; put keras.Model(x, model.call(x)) of "
                "x = keras.Input(...) in its place, which has the same layers and weights"
            )
            return self._refuse(call, why)
        functional = self.opened.setdefault(id(model), as_functional(model))
        place = dataclasses.replace(self.place, around=repr(model.name))
        return self._inside(model.name, place, functional, tree.flatten(call.args))

    def _inside(self, name: str, place: Origin, functional: Any, tensors: list[Any]) -> Any:
        outer = self.prefix, self.place
        self.prefix, self.place = name, place
        try:
            return self._replay(functional, tensors)
        finally:
            self.prefix, self.place = outer

    def _open_layer(self, call: Call) -> Any:
        """Replays what a composite layer calls."""
        layer, tensors = call.operation, call.tensors
        users = layers.Activation, layers.Lambda  # Keras' own classes, of functions that are not
        own = is_keras_own(type(layer)) and not isinstance(layer, users)
        if not isinstance(layer, layers.Layer) or (own and reason(layer)):
            return self._refuse(call, why_none(layer, tensors))
        try:
            functional, inputs = opened(layer, call.args, call.kwargs)
        except NotOpenedError as error:
            why = why_none(layer, tensors) if own else str(error)
            if own or returns_what_it_is_given(layer, tensors):
                why = not_copied(layer) or why
            return self._refuse(call, why)
        self.opened[id(functional)] = functional
        label = dataclasses.replace(self.place, name=layer.name).label(layer)
        place = Origin("", composite=layer.name, around=label, stuck=not_copied(layer))
        return self._inside(layer.name, place, functional, inputs)


_RULES: tuple[tuple[Any, Rule], ...] = (
    (object, SequenceRows._on_rows),
    (object, DataMovement._moved),
    *RULES,
)


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


def _trains_always(operation: Any, flag: Any) -> bool:
    """Whether the user passes training=True to something that acts in training."""
    if flag is not True or not isinstance(operation, layers.Layer):
        return False
    if inspect.signature(operation.call).parameters["training"].default is True:
        return False  # Keras notes down the default of a `call`, too
    own = [] if isinstance(operation, keras.Model) else [operation]
    parts = [*own, *layers_inside(operation)]
    return any(takes_training(p) and not isinstance(p, keras.Model) for p in parts)
