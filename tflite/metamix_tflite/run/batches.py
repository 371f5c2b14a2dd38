"""Files of one image, for several at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

_TRANSPOSED = schema.BuiltinOperator.TRANSPOSE_CONV
_DATA = 4  # of Buffer's fields, in its table by the schema


def of_batch(flat: bytes, size: int) -> bytes:
    """A file whose TRANSPOSE_CONVs give `size` images.

    LiteRT takes the size of their result from a constant, the batch's included; other operators
    follow their input.

    Args:
      flat: a file of one subgraph.
      size: of the batch.
    """
    model, content = schema.Model.GetRootAs(flat, 0), bytearray(flat)
    if not model.SubgraphsLength():
        return flat
    graph: Any = model.Subgraphs(0)
    for number in range(graph.OperatorsLength()):
        operator = graph.Operators(number)
        code = model.OperatorCodes(operator.OpcodeIndex())
        if max(code.BuiltinCode(), code.DeprecatedBuiltinCode()) != _TRANSPOSED:
            continue
        buffer = model.Buffers(graph.Tensors(operator.Inputs(0)).Buffer())
        field = buffer._tab.Offset(_DATA)
        if field and buffer.DataLength() >= 4:
            start = buffer._tab.Vector(field)
            content[start : start + 4] = np.int32(size).tobytes()
    return bytes(content)
