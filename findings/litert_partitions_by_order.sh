#!/usr/bin/env bash
# The order in which a .tflite file lists two operators that do not depend on one another decides
# whether XNNPACK gets one partition or two.
#
# One would expect a delegate's partitions to follow from the graph: here one operator that XNNPACK
# declines (QUANTIZE of a uint8 input) feeds a sum whose other operand it takes. Any order that is
# topological is the same graph. LiteRT forms partitions greedily in the file's order: a delegated
# operator that is listed before the declined one is cut off from all that comes after it. So a
# writer that lists operators input by input doubles the partitions, and nothing says so.
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
float32 first: 2 XNNPACK partition(s), sums [-29, -21, -12, -4, 4, 12, 20, 28]
uint8 first: 1 XNNPACK partition(s), sums [-29, -21, -12, -4, 4, 12, 20, 28]
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


KERNELS = {
    "XNNPACK": OpResolverType.BUILTIN,
    "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    "reference": OpResolverType.BUILTIN_REF,
}


def run(flat, *arrays, kernels="XNNPACK"):
    """Outputs of a file's first signature or graph, and how many XNNPACK partitions it has."""
    runner = Interpreter(
        model_content=flat, num_threads=1, experimental_op_resolver_type=KERNELS[kernels]
    )
    runner.allocate_tensors()
    for end, array in zip(runner.get_input_details(), arrays, strict=True):
        runner.set_tensor(end["index"], array)
    runner.invoke()
    names = [operator["op_name"] for operator in runner._get_ops_details()]
    output = runner.get_tensor(runner.get_output_details()[0]["index"])
    return output, names.count("DELEGATE")


def file(order):
    graph = Graph()
    real = graph.tensor((1, 8), "FLOAT32")
    pixels = graph.tensor((1, 8), "UINT8", 0.1, 128)
    left, right = (graph.tensor((1, 8), "INT8", 0.1, 0) for _ in range(2))
    total = graph.tensor((1, 8), "INT8", 0.2, 0)
    ends = {"float32": (real, left), "uint8": (pixels, right)}
    for kind in order:
        x, y = ends[kind]
        graph.operator("QUANTIZE", [x], [y], options="QuantizeOptions")
    graph.operator("ADD", [left, right], [total], version=2, options="AddOptions")
    return graph.file([real, pixels], [total])


inputs = np.linspace(-5, 5, 8, dtype=np.float32)[None], np.arange(120, 136, 2, dtype=np.uint8)[None]
for order in (("float32", "uint8"), ("uint8", "float32")):
    sums, partitions = run(file(order), *inputs)
    print(f"{order[0]} first: {partitions} XNNPACK partition(s), sums {sums[0].tolist()}")
PY

venv/bin/python program.py >now 2>log || { cat now log >&2; exit 1; }
cat now
diff seen now >&2 || { echo "not what was seen: the lines with < were" >&2; exit 1; }
