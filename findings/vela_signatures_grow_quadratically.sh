#!/usr/bin/env bash
# Vela writes into each subgraph of a file the weights of all subgraphs before it.
#
# One would expect a file with several signatures to compile to about the sum of its parts: alone,
# each of these (one 3x3 convolution with 4-bit integers) shrinks to half, as Vela compresses
# weights. But the second signature's constants begin with a copy of the first's, the third's with
# both, and so on. From four on the compiled file is larger than the plain one, and a board has no
# flash to spare. Vela's summary adds up what it estimates; it does not show this.
#
# Seen with ethos-u-vela 5.2.0 for Ethos-U55-128, 2026-11-28.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3.11}" -m venv venv
venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check \
  ethos-u-vela==5.2.0 \
  ai-edge-litert==2.3.0 \
  flatbuffers==25.12.19 \
  numpy==2.4.6

cat >seen <<'SEEN'
1 signature(s): 0.52 of the plain file
  constants of each: 19088
2 signature(s): 0.76 of the plain file
  constants of each: 19088 38176
4 signature(s): 1.24 of the plain file
  constants of each: 19088 38176 57264 76352
8 signature(s): 2.21 of the plain file
  constants of each: 19088 38176 57264 76352 95440 114528 133616 152704
SEEN

cat >program.py <<'PY'
import os
import subprocess

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as tfl


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


def file(count):
    buffers, codes, subgraphs, signatures = [table(tfl.BufferT)], [], [], []
    for n in range(count):
        graph = Graph()
        graph.buffers, graph.codes = buffers, codes
        x, y = (graph.tensor((1, 16, 16, 64), "INT8", 0.05, -128) for _ in range(2))
        integers = np.random.default_rng(n).integers(-7, 8, (64, 3, 3, 64)).astype(np.int8)
        weights = graph.tensor(integers.shape, "INT8", np.full(64, 0.002), data=integers)
        bias = graph.tensor((64,), "INT32", np.full(64, 0.0001), data=np.zeros(64, np.int32))
        strides = {"strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1}
        ends = [x, weights, bias], [y]
        graph.operator("CONV_2D", *ends, version=3, options="Conv2DOptions", **strides)
        subgraphs.append(graph.subgraph([x], [y]))
        signatures.append(signature(f"point_{n}", n, x, y))
    model = table(tfl.ModelT, version=3, buffers=buffers, operatorCodes=codes)
    model.subgraphs, model.signatureDefs = subgraphs, signatures
    return packed(model)


for count in (1, 2, 4, 8):
    with open("model.tflite", "wb") as stream:
        stream.write(file(count))
    vela = "venv/bin/vela --accelerator-config ethos-u55-128 --output-dir . model.tflite"
    subprocess.run(vela.split(), check=True, stdout=subprocess.DEVNULL)
    with open("model_vela.tflite", "rb") as stream:
        made = stream.read()
    buffers = tfl.ModelT.InitFromPackedBuf(made).buffers
    constants = [len(b.data) for b in buffers if b.data is not None and len(b.data) > 1000]
    share = len(made) / os.path.getsize("model.tflite")
    print(f"{count} signature(s): {share:.2f} of the plain file")
    print("  constants of each:", *constants)
PY

venv/bin/python program.py >now 2>log || { cat now log >&2; exit 1; }
cat now
diff seen now >&2 || { echo "not what was seen: the lines with < were" >&2; exit 1; }
