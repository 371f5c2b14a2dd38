#!/usr/bin/env bash
# LiteRT Quantizer's static quantization to 2-bit weights quantizes no weight, and reports success.
#
# One would expect an error, as its recipe is checked against a policy, or what its dynamic
# quantization gives: INT2 constants. With static 8-bit activations and `weight_num_bits=2` it
# leaves every weight in float32, adds operators to and from int8 around a RESHAPE, prints a ratio,
# and returns a file that is larger than the float one. With 4 bits it leaves the depthwise layers
# in float32, equally silent.
#
# Seen with litert-quantizer 0.11.0 and ai-edge-litert 2.3.0, 2026-11-28.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3.11}" -m venv venv
venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check \
  litert-quantizer==0.11.0 \
  ai-edge-litert==2.3.0 \
  flatbuffers==25.12.19 \
  numpy==2.4.6

cat >seen <<'SEEN'
weights of 8 bits: INT8, INT8, INT8; file 0.28 of the float one
weights of 4 bits: INT4, FLOAT32, INT4; file 0.16 of the float one
weights of 2 bits: FLOAT32, FLOAT32, FLOAT32; file 1.01 of the float one
SEEN

cat >program.py <<'PY'
import contextlib
import os

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as tfl
from litert_quantizer import qtyping, quantizer


def signature(name, subgraph, x, y):
    ends = [[table(tfl.TensorMapT, name=n, tensorIndex=t)] for n, t in (("x", x), ("y", y))]
    made = table(tfl.SignatureDefT, signatureKey=name, subgraphIndex=subgraph)
    made.inputs, made.outputs = ends
    return made


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


draw = np.random.default_rng(0).normal


def constant(graph, *shape):
    return graph.tensor(shape, "FLOAT32", data=draw(size=shape).astype(np.float32))


def float_file():
    graph = Graph()
    x, a, b = (graph.tensor((1, 8, 8, n), "FLOAT32") for n in (16, 32, 32))
    strides = {"strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1}
    ends = [x, constant(graph, 32, 3, 3, 16), constant(graph, 32)], [a]
    graph.operator("CONV_2D", *ends, options="Conv2DOptions", **strides)
    ends = [a, constant(graph, 1, 3, 3, 32), constant(graph, 32)], [b]
    options = {"options": "DepthwiseConv2DOptions", "depthMultiplier": 1}
    graph.operator("DEPTHWISE_CONV_2D", *ends, **options, **strides)
    flat, y = graph.tensor((1, 2048), "FLOAT32"), graph.tensor((1, 10), "FLOAT32")
    shape = graph.tensor((2,), "INT32", data=np.array([1, 2048], np.int32))
    graph.operator("RESHAPE", [b, shape], [flat])
    ends = [flat, constant(graph, 10, 2048), constant(graph, 10)], [y]
    graph.operator("FULLY_CONNECTED", *ends, options="FullyConnectedOptions")
    return graph.file([x], [y], [signature("serving_default", 0, x, y)])


with open("float.tflite", "wb") as stream:
    stream.write(float_file())
data = {"serving_default": [{"x": draw(size=(1, 8, 8, 16)).astype(np.float32)} for _ in range(4)]}
types = {code: name for name, code in vars(tfl.TensorType).items() if isinstance(code, int)}
for bits in (8, 4, 2):
    tool = quantizer.Quantizer("float.tflite")
    every = {"regex": ".*", "operation_name": qtyping.TFLOperationName.ALL_SUPPORTED}
    tool.add_static_config(**every, activation_num_bits=8, weight_num_bits=bits)
    with contextlib.redirect_stdout(None):
        made = bytes(tool.quantize(tool.calibrate(data)).quantized_model)
    graph = tfl.ModelT.InitFromPackedBuf(made).subgraphs[0]
    layers = [operator for operator in graph.operators if len(operator.inputs) == 3]
    weights = [types[graph.tensors[layer.inputs[1]].type] for layer in layers]
    size = len(made) / os.path.getsize("float.tflite")
    print(f"weights of {bits} bits: {', '.join(weights)}; file {size:.2f} of the float one")
PY

venv/bin/python program.py >now 2>log || { cat now log >&2; exit 1; }
cat now
diff seen now >&2 || { echo "not what was seen: the lines with < were" >&2; exit 1; }
