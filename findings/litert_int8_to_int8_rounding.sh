#!/usr/bin/env bash
# QUANTIZE from int8 to int8 rounds to the nearest code with none of LiteRT's three kernel sets.
#
# One would expect it to be the most harmless operator of an int8 file: the nearest code of the new
# grid, half a step off at most, a different rounding of ties at worst.
# Builtin and reference kernels round twice, to an integer before the last halving: a code has no
# fractional bits to lose, so up to three quarters of a step and a quarter of all codes are wrong.
# XNNPACK has one rounding, but keeps just 8 fractional bits of the ratio, and hands the operator
# to the builtin kernel where the ratio does not fit: other codes are wrong, up to a whole step.
# In a convolution neither is seen: its accumulators are large.
#
# Seen with ai-edge-litert 2.3.0 on x86-64, 2026-11-28. The rest is compared, line by line.
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
step 0.1 to 0.2203, XNNPACK: 24 of 256 codes, 0.67 steps off at most
step 0.1 to 0.2203, builtin: 64 of 256 codes, 0.75 steps off at most
step 0.1 to 0.2203, reference: 64 of 256 codes, 0.75 steps off at most
step 0.1 to 0.31, XNNPACK: 54 of 256 codes, 0.87 steps off at most
step 0.1 to 0.31, builtin: 67 of 256 codes, 0.74 steps off at most
step 0.1 to 0.31, reference: 67 of 256 codes, 0.74 steps off at most
step 0.1 to 3.01, XNNPACK: 68 of 256 codes, 0.96 steps off at most
step 0.1 to 3.01, builtin: 9 of 256 codes, 0.53 steps off at most
step 0.1 to 3.01, reference: 9 of 256 codes, 0.53 steps off at most
step 0.1 to 17.04, XNNPACK: 86 of 256 codes, 0.87 steps off at most
step 0.1 to 17.04, builtin: 2 of 256 codes, 0.50 steps off at most
step 0.1 to 17.04, reference: 2 of 256 codes, 0.50 steps off at most
step 0.1 to 30.0, XNNPACK (left to builtin): 0 of 256 codes, 0.50 steps off at most
step 0.1 to 30.0, builtin: 0 of 256 codes, 0.50 steps off at most
step 0.1 to 30.0, reference: 0 of 256 codes, 0.50 steps off at most
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


codes = np.arange(-128, 128).astype(np.int8)[None]
for old, new in ((0.1, 0.2203), (0.1, 0.31), (0.1, 3.01), (0.1, 17.04), (0.1, 30.0)):
    graph = Graph()
    x = graph.tensor(codes.shape, "INT8", old, -128)
    y = graph.tensor(codes.shape, "INT8", new, -128)
    graph.operator("QUANTIZE", [x], [y], version=2, options="QuantizeOptions")
    flat = graph.file([x], [y])
    exact = (codes + 128.0) * float(np.float32(old)) / float(np.float32(new)) - 128
    for kernels in KERNELS:
        got, partitions = run(flat, codes, kernels=kernels)
        wrong = int((got != np.rint(exact)).sum())
        off = np.abs(got - exact).max()
        by = "" if kernels != "XNNPACK" or partitions else " (left to builtin)"
        found = f"{wrong} of 256 codes, {off:.2f} steps off at most"
        print(f"step {old} to {new}, {kernels}{by}: {found}")
PY

venv/bin/python program.py >now 2>log || { cat now log >&2; exit 1; }
cat now
diff seen now >&2 || { echo "not what was seen: the lines with < were" >&2; exit 1; }
