"""Sequences in the flat model: images of one row, on which 2-D layers compute what 1-D ones do."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
from keras import layers, tree

from keras_metamix.graph.pieces import Call, Pieces
from keras_metamix.graph.reasons import described
from keras_metamix.graph.refusals import Origin
from keras_metamix.graph.sequences import IN_TIME, on_row
from keras_metamix.keras_internals import call_of, layers_inside, operation_of

_AS_ROW = "the sequence as an image of one row"
_AS_SEQUENCE = "the image of one row as a sequence"


class SequenceRows(Pieces):
    """Replaces operations on sequences, of a model with 1-D layers, by operations on rows.

    A sequence has the shape (batch, time, channels), its row (batch, 1, time, channels). Between
    two such operations there is the row alone.
    """

    def __init__(self, model: keras.Model):
        super().__init__(model)
        self.in_time = any(isinstance(layer, IN_TIME) for layer in layers_inside(model))
        self.input_names: dict[str, str] = {  # the user's, by those in the flat model
            tensor.name: operation_of(tensor).name for tensor in tree.flatten(model.input)
        }
        # By the identity of a sequence or an operation, which the values keep alive.
        self.rows: dict[int, tuple[Any, Any]] = {}
        self.twins: dict[int, tuple[Any, Any]] = {}

    def _on_rows(self, call: Call) -> Any:
        """What replaces a call on sequences; None for another call, or where rows have no such."""
        if not self.in_time or not _are_sequences(call.tensors):
            return None
        if issubclass(call.cls, layers.Flatten) or call.cls.__name__ == "Reshape":
            first, *others = call.args
            _, source = self.rows.get(id(first), (first, first))
            return self._clone(call.operation)(source, *others, **call.kwargs)
        args, kwargs = tree.map_structure(self._row, (call.args, call.kwargs))
        on_rows = dataclasses.replace(call, args=args, kwargs=kwargs)
        twin = self._twin(call.operation, on_rows.tensors[0].shape)
        if twin is None:
            return None
        return self._sequence(call.operation, self._replaced_on_rows(twin, on_rows))

    def _row(self, value: Any) -> Any:
        """A sequence as an image of one row; whatever is no sequence as it is."""
        if not keras.utils.is_keras_tensor(value):
            return value
        if id(value) not in self.rows:
            operation: Any = operation_of(value)
            source = value
            plain = getattr(operation, "activity_regularizer", None) is None
            if plain and type(operation).__name__ == "Reshape":  # both in one
                (source,) = call_of(value).input_tensors
            user = str(self.input_names.get(operation.name, operation.name))
            name = self._name(f"{user}_row", user)
            origin = self.origins.get(operation.name, Origin(user))
            self._records_layout(name, origin, origin.cls or described(operation), _AS_ROW)
            row = layers.Reshape((1, *value.shape[1:]), name=name)(source)
            self.rows[id(value)] = value, row
        return self.rows[id(value)][1]

    def _twin(self, operation: Any, shape: tuple[Any, ...]) -> Any:
        """The one operation on rows of this shape that an operation on sequences is, or None."""
        if id(operation) not in self.twins:
            self.twins[id(operation)] = operation, on_row(operation, shape)
        return self.twins[id(operation)][1]

    def _replaced_on_rows(self, twin: Any, call: Call) -> Any:
        """What replaces a call of the twin in place of the user's operation."""
        outer = self.place
        if twin is not call.operation:
            self.place = dataclasses.replace(outer, cls=described(call.operation))
        try:
            args = self._behind_causal_border(call.operation, call.args)
            kwargs = {key: value for key, value in call.kwargs.items() if key != "mask"}  # None
            return self._replaced(Call.of(twin, args, kwargs))
        finally:
            self.place = outer

    def _behind_causal_border(self, operation: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if getattr(operation, "padding", "") != "causal":
            return args
        reach = (operation.kernel_size[0] - 1) * operation.dilation_rate[0]
        border = {"padding": ((0, 0), (reach, 0))}
        return (self._part(layers.ZeroPadding2D, operation, "causal", **border)(args[0]),)

    def _sequence(self, operation: Any, row: Any) -> Any:
        """A row as the sequence that it is; a tensor without time is the result already."""
        if len(row.shape) != 4:
            return row
        reshape = self._part(layers.Reshape, operation, "sequence", target_shape=row.shape[2:])
        origin = self.origins[reshape.name]
        self._records_layout(reshape.name, origin, described(operation), _AS_SEQUENCE)
        sequence = reshape(row)
        self.rows[id(sequence)] = sequence, row
        return sequence

    def _records_layout(self, name: str, origin: Origin, cls: str, layout: str) -> None:
        self.origins[name] = dataclasses.replace(origin, cls=cls, layout=layout)


def _are_sequences(tensors: Sequence[Any]) -> bool:
    return bool(tensors) and all(len(tensor.shape) == 3 for tensor in tensors)
