"""The layers that replace one layer in the flat model: copies, and what a layer splits into."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
from keras import layers, tree

from keras_metamix.graph.copying import copy_of
from keras_metamix.graph.names import Names
from keras_metamix.graph.ownership import activation_name, config_of, keras_class
from keras_metamix.graph.refusals import Origin


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of an operation.

    Attributes:
      operation: a layer or a raw operation.
      cls: the Keras class whose arithmetic it has, NoneType for none.
      args, kwargs: what it is called with, tensors of the flat model among them.
    """

    operation: Any
    cls: type
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        return cls(operation, keras_class(operation) or type(None), args, kwargs)

    @property
    def inputs(self) -> Any:
        """The first argument, which a layer's inputs are."""
        return self.args[0]

    @property
    def tensors(self) -> list[Any]:
        """Every tensor that the call reads."""
        leaves = tree.flatten((self.args, self.kwargs))
        return [leaf for leaf in leaves if keras.utils.is_keras_tensor(leaf)]


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
        """What replaces one call of one operation."""
        raise NotImplementedError

    def _replaced(self, call: Call) -> Any:
        """What replaces a call of an operation that the walk takes."""
        raise NotImplementedError

    def _name(self, name: str, user: str = "") -> str:
        """A name that no layer of the flat model has yet; `user` is what the user calls it."""
        found = f"{self.prefix}_{name}" if name in self.names and self.prefix else name
        return self._recorded(self.names.new(found), user or name)

    def _own_name(self, operation: Any) -> str:
        """The name of what replaces an operation: its own, wherever that is to be had."""
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
        name, activity = self._own_name(operation), activity_of(operation)
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

    def _activation(self, layer: Any, inputs: Any) -> Any:
        """The activation of a MAC layer, as a layer behind it."""
        function = layer.activation
        if isinstance(function, layers.Layer):
            return self._regularized(layer, self._call(function, inputs))
        new = layers.Activation(
            activation_name(function) or function,
            name=self._name(f"{layer.name}_activation"),
            activity_regularizer=activity_of(layer),
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
        if activity_of(layer) is None:
            return outputs
        new = self._part(layers.Activation, layer, "activity", activation="linear")
        new.activity_regularizer = activity_of(layer)
        return tree.map_structure(new, outputs)


def activity_of(operation: Any) -> Any:
    """What an operation adds to the loss for its results, None for nothing."""
    return getattr(operation, "activity_regularizer", None)
