#!/usr/bin/env bash
# LiteRT's XNNPACK weight cache is not tied to the model that it was made from.
#
# One would expect a cache file that was made from other weights to be refused or made anew. A
# second model of the same structure, say the next training run of the same network, is opened with
# it without a word and computes with the first one's weights.
# (The text of the option also says that its path is a directory. It is a file.)
#
# Seen with ai-edge-litert 2.3.0, CompiledModel, 2026-11-28.
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
without a cache the two agree in 0 of 64 outputs
the second with the first's cache gives 0 of its 64 outputs
and 64 of the first's
SEEN

cat >program.py <<'PY'
import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as tfl
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.cpu_options import CpuOptions
from ai_edge_litert.options import Options


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


def save(path, seed):
    draw = np.random.default_rng(seed).normal
    graph = Graph()
    x, y = (graph.tensor((1, 64), "FLOAT32") for _ in range(2))
    weights = graph.tensor((64, 64), "FLOAT32", data=draw(size=(64, 64)).astype(np.float32))
    bias = graph.tensor((64,), "FLOAT32", data=np.zeros(64, np.float32))
    graph.operator("FULLY_CONNECTED", [x, weights, bias], [y], options="FullyConnectedOptions")
    with open(path, "wb") as stream:
        stream.write(graph.file([x], [y]))


def outputs(path, cache=""):
    cpu = CpuOptions(num_threads=1, xnnpack_weight_cache_path=cache)
    model = CompiledModel.from_file(path, options=Options(cpu_options=cpu))
    inputs, results = model.create_input_buffers(0), model.create_output_buffers(0)
    inputs[0].write(np.linspace(-1, 1, 64, dtype=np.float32))
    model.run_by_index(0, inputs, results)
    return results[0].read(64, np.float32)


save("first.tflite", 1)
save("second.tflite", 2)
first, second = outputs("first.tflite"), outputs("second.tflite")
print("without a cache the two agree in", int((first == second).sum()), "of 64 outputs")
outputs("first.tflite", cache="weights.cache")
cached = outputs("second.tflite", cache="weights.cache")
print("the second with the first's cache gives", int((cached == second).sum()), "of its 64 outputs")
print("and", int((cached == first).sum()), "of the first's")
PY

venv/bin/python program.py >now 2>log || { cat now log >&2; exit 1; }
cat now
diff seen now >&2 || { echo "not what was seen: the lines with < were" >&2; exit 1; }
