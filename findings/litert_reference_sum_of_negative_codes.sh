#!/usr/bin/env bash
# SUM of int8 by the interpreter's reference kernels is wrong as soon as one value is negative.
#
# The reference kernels are what an implementation is compared with. SUM of int8 with zero points of
# 0 is right by the builtin kernels and by the default resolver. The reference kernel is right while
# all codes are non-negative and their sum fits: 1 - 1 + 0 + 0 gives -1, -128 or 51 at three output
# steps, and a sum that should saturate at 127 gives -1 or -56.
#
# Seen with ai-edge-litert 2.3.0, 2026-11-28.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3.11}" -m venv venv
venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check \
  ai-edge-litert==2.3.0 \
  flatbuffers==25.12.19 \
  numpy==2.4.6

cat >seen <<'SEEN'
sum of [5, 4, 3, 2] at output step 0.05: 14; reference 14, builtin 14, default 14
sum of [5, 4, 3, 2] at output step 0.1: 7; reference 7, builtin 7, default 7
sum of [5, 4, 3, 2] at output step 0.25: 3; reference 3, builtin 3, default 3
sum of [1, -1, 0, 0] at output step 0.05: 0; reference -1, builtin 0, default 0
sum of [1, -1, 0, 0] at output step 0.1: 0; reference -128, builtin 0, default 0
sum of [1, -1, 0, 0] at output step 0.25: 0; reference 51, builtin 0, default 0
sum of [10, -10, 10, 10] at output step 0.05: 20; reference -1, builtin 20, default 20
sum of [10, -10, 10, 10] at output step 0.1: 10; reference -118, builtin 10, default 10
sum of [10, -10, 10, 10] at output step 0.25: 4; reference 55, builtin 4, default 4
sum of [100, 100, 100, 100] at output step 0.05: 127; reference -1, builtin 127, default 127
sum of [100, 100, 100, 100] at output step 0.1: 127; reference -56, builtin 127, default 127
sum of [100, 100, 100, 100] at output step 0.25: 80; reference 80, builtin 80, default 80
SEEN

cat >program.py <<'PY'
import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as tfl
from ai_edge_litert.interpreter import Interpreter, OpResolverType


def table(kind, **fields):
    made = kind()
    for name, value in fields.items():
        setattr(made, name, value)
    return made


class Graph:
    """A .tflite file of one graph, by the schema that ai-edge-litert ships."""

    def __init__(self):
        self.buffers, self.tensors = [table(tfl.BufferT)], []
        self.codes, self.operators = [], []

    def tensor(self, shape, kind, scale=None, zero_point=0, data=None):
        if data is not None:
            self.buffers.append(table(tfl.BufferT, data=np.frombuffer(data.tobytes(), np.uint8)))
        grid = None
        if scale is not None:
            scales = [float(s) for s in np.atleast_1d(scale)]
            zero_points = [zero_point] * len(scales)
            grid = table(tfl.QuantizationParametersT, scale=scales, zeroPoint=zero_points)
        made = table(tfl.TensorT, name=f"t{len(self.tensors)}", shape=list(shape))
        made.quantization = grid
        made.type = getattr(tfl.TensorType, kind)
        made.buffer = 0 if data is None else len(self.buffers) - 1
        self.tensors.append(made)
        return len(self.tensors) - 1

    def operator(self, name, inputs, outputs, version=1, options=None, **fields):
        code = getattr(tfl.BuiltinOperator, name)
        self.codes.append(table(tfl.OperatorCodeT, builtinCode=code, version=version))
        self.codes[-1].deprecatedBuiltinCode = min(code, 127)
        made = table(tfl.OperatorT, inputs=inputs, outputs=outputs)
        made.opcodeIndex = len(self.codes) - 1
        if options:
            made.builtinOptionsType = getattr(tfl.BuiltinOptions, options)
            made.builtinOptions = table(getattr(tfl, options + "T"), **fields)
        self.operators.append(made)

    def subgraph(self, inputs, outputs):
        graph = table(tfl.SubGraphT, tensors=self.tensors, operators=self.operators)
        graph.inputs, graph.outputs = inputs, outputs
        return graph

    def file(self, inputs, outputs, signatures=None):
        model = table(tfl.ModelT, version=3, buffers=self.buffers, operatorCodes=self.codes)
        model.subgraphs, model.signatureDefs = [self.subgraph(inputs, outputs)], signatures
        return packed(model)


def packed(model):
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def summed(row, step, kernels):
    levels = np.array(row, np.int8).reshape(1, -1)
    graph = Graph()
    x = graph.tensor(levels.shape, "INT8", 0.05)
    axes = graph.tensor((1,), "INT32", data=np.array([1], np.int32))
    y = graph.tensor((1, 1), "INT8", step)
    graph.operator("SUM", [x, axes], [y], 2, "ReducerOptions", keepDims=True)
    file = graph.file([x], [y])
    made = Interpreter(model_content=file, experimental_op_resolver_type=kernels, num_threads=1)
    made.allocate_tensors()
    made.set_tensor(made.get_input_details()[0]["index"], levels)
    made.invoke()
    return made.get_tensor(made.get_output_details()[0]["index"]).item()


SETS = {
    "reference": OpResolverType.BUILTIN_REF,
    "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    "default": OpResolverType.BUILTIN,
}
for row in ([5, 4, 3, 2], [1, -1, 0, 0], [10, -10, 10, 10], [100, 100, 100, 100]):
    for step in (0.05, 0.1, 0.25):
        right = np.clip(np.rint(sum(row) * 0.05 / step), -128, 127).astype(int)
        found = ", ".join(f"{name} {summed(row, step, kernels)}" for name, kernels in SETS.items())
        print(f"sum of {row} at output step {step}: {right}; {found}")
PY

venv/bin/python program.py >now 2>log || { cat now log >&2; exit 1; }
cat now
diff seen now >&2 || { echo "not what was seen: the lines with < were" >&2; exit 1; }
