#!/usr/bin/env bash
# MNN's converter installs a package, without asking: `mnnconvert` runs `pip install -U` of a cloud
# provider's logging client, unpinned, with whichever `pip` comes first on PATH.
#
# One would expect a converter of files to need neither pip nor a network: the wheel declares no
# such dependency, and `import MNN` does not ask for it. Called by its full path from an environment
# that was not activated, it installed nine packages into the system's Python, an old protobuf among
# them, and replaced a tenth. By its source the client then reports MNN's version, the system, a
# machine id, the options and the sizes of both models after each conversion.
#
# Seen with MNN 3.6.1, 2026-11-28. A `pip` that only writes down its arguments stands in front of
# the real one here: nothing is installed, and nothing is sent.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3.11}" -m venv venv
venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check \
  MNN==3.6.1 \
  ai-edge-litert==2.3.0 \
  flatbuffers==25.12.19 \
  numpy==2.4.6

cat >seen <<'SEEN'
import MNN: []
mnnconvert: ['pip install -U aliyun-log-python-sdk', 'pip install -U aliyun-log-python-sdk']
model.mnn: written
declared dependencies: ['numpy']
SEEN

# The converter starts the first `pip` on PATH: this one only writes down what it was asked.
mkdir shims
printf '#!/bin/sh\necho "pip $*" >>"%s/asked"\n' "$work" >shims/pip
chmod +x shims/pip
touch asked
export PATH="$work/shims:$work/venv/bin:$PATH"

cat >program.py <<'PY'
import importlib.metadata
import pathlib
import subprocess
import sys

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as tfl


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


def file(activation, step, zero_point):
    draw = np.random.default_rng(0).integers
    graph = Graph()
    shape = (1, 4, 4, 8)
    x, y = (graph.tensor(shape, "FLOAT32") for _ in range(2))
    a = graph.tensor(shape, "INT8", 0.05, 0)
    b = graph.tensor(shape, "INT8", step, zero_point)
    integers = draw(-127, 128, (8, 1, 1, 8)).astype(np.int8)
    weights = graph.tensor(integers.shape, "INT8", np.full(8, 0.02), data=integers)
    bias = graph.tensor((8,), "INT32", np.full(8, 0.001), data=np.zeros(8, np.int32))
    graph.operator("QUANTIZE", [x], [a], options="QuantizeOptions")
    strides = {"strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1}
    options = {"options": "Conv2DOptions", "padding": tfl.Padding.VALID, **strides}
    options["fusedActivationFunction"] = getattr(tfl.ActivationFunctionType, activation)
    graph.operator("CONV_2D", [a, weights, bias], [b], version=3, **options)
    graph.operator("DEQUANTIZE", [b], [y], version=2, options="DequantizeOptions")
    return graph.file([x], [y])


with open("model.tflite", "wb") as stream:
    stream.write(file("RELU", 0.1, -128))
asked = pathlib.Path("asked")
subprocess.run([sys.executable, "-c", "import MNN"], check=True, stdout=subprocess.DEVNULL)
print("import MNN:", asked.read_text().splitlines())
convert = "mnnconvert -f TFLITE --modelFile model.tflite --MNNModel model.mnn --bizCode x"
subprocess.run(convert.split(), check=True, stdout=subprocess.DEVNULL)
print("mnnconvert:", asked.read_text().splitlines())
print("model.mnn:", "written" if pathlib.Path("model.mnn").is_file() else "missing")
print("declared dependencies:", importlib.metadata.requires("MNN"))
PY

venv/bin/python program.py >now 2>log || { cat now log >&2; exit 1; }
sed -i '/^The device supports/d' now # MNN's greeting, which depends on the CPU

cat now
diff seen now >&2 || { echo "not what was seen: the lines with < were" >&2; exit 1; }
