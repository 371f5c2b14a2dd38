#!/usr/bin/env bash
# A CompiledModel that is told to run the reference kernels runs the builtin ones.
#
# CpuKernelMode has DELEGATE (XNNPACK), BUILTIN and REFERENCE, as the interpreter has three resolvers.
# One would expect the last of each to compute the same. REFERENCE gives, to the bit, what the
# builtin kernels give, in floats and in integers: whoever takes it as the definition of an operator
# compares with the optimized kernels.
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
the interpreter's kernel sets agree in all outputs: False
REFERENCE gives the builtin kernels' outputs: True
and the reference kernels' outputs: False
SEEN

cat >program.py <<'PY'
import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as tfl
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.cpu_kernel_mode import CpuKernelMode
from ai_edge_litert.cpu_options import CpuOptions
from ai_edge_litert.interpreter import Interpreter, OpResolverType
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


graph = Graph()
x, y = (graph.tensor((1, 999), "FLOAT32") for _ in range(2))
weights = np.random.default_rng(0).normal(size=(999, 999)).astype(np.float32)
bias = graph.tensor((999,), "FLOAT32", data=np.zeros(999, np.float32))
inputs = [x, graph.tensor(weights.shape, "FLOAT32", data=weights), bias]
graph.operator("FULLY_CONNECTED", inputs, [y], options="FullyConnectedOptions")
flat = graph.file([x], [y])
image = np.random.default_rng(1).normal(size=(1, 999)).astype(np.float32)


def interpreted(kernels):
    made = Interpreter(model_content=flat, experimental_op_resolver_type=kernels, num_threads=1)
    made.allocate_tensors()
    made.set_tensor(made.get_input_details()[0]["index"], image)
    made.invoke()
    return made.get_tensor(made.get_output_details()[0]["index"]).ravel()


def compiled(kernels):
    cpu = CpuOptions(num_threads=1, kernel_mode=kernels)
    model = CompiledModel.from_buffer(flat, options=Options(cpu_options=cpu))
    given, results = model.create_input_buffers(0), model.create_output_buffers(0)
    given[0].write(image)
    model.run_by_index(0, given, results)
    return results[0].read(999, np.float32)


found = compiled(CpuKernelMode.REFERENCE)
builtin = interpreted(OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
reference = interpreted(OpResolverType.BUILTIN_REF)
print("the interpreter's kernel sets agree in all outputs:", np.array_equal(builtin, reference))
print("REFERENCE gives the builtin kernels' outputs:", np.array_equal(found, builtin))
print("and the reference kernels' outputs:", np.array_equal(found, reference))
PY

venv/bin/python program.py >now 2>log || { cat now log >&2; exit 1; }
cat now
diff seen now >&2 || { echo "not what was seen: the lines with < were" >&2; exit 1; }
