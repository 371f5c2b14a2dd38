#!/usr/bin/env bash
# MNN runs the RELU6 that is fused into a quantized convolution as a RELU.
#
# One would expect the activation of a MobileNet's every layer to be applied. The converter accepts
# it and says nothing; the upper bound is dropped. In most int8 files that is hidden, as their
# tensors end at 6 anyway (step 6/255, zero-point -128) and saturation does the work. Where the
# tensor's range goes further, because it is shared with a sum or a concatenation or because its
# step was learned, values up to the end of that range come out.
#
# Seen with MNN 3.6.1 against ai-edge-litert 2.3.0 on x86-64, 2026-11-28.
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
RELU6, range to 6.00: LiteRT's largest value 6.00, MNN's 6.00, 0 of 128 differ
RELU6, range to 12.75: LiteRT's largest value 6.00, MNN's 12.75, 45 of 128 differ
RELU6, range to 25.50: LiteRT's largest value 6.00, MNN's 25.50, 45 of 128 differ
RELU, range to 25.50: LiteRT's largest value 25.50, MNN's 25.50, 0 of 128 differ
SEEN

# The converter starts the first `pip` on PATH: this one only writes down what it was asked.
mkdir shims
printf '#!/bin/sh\necho "pip $*" >>"%s/asked"\n' "$work" >shims/pip
chmod +x shims/pip
touch asked
export PATH="$work/shims:$work/venv/bin:$PATH"

cat >program.py <<'PY'
import subprocess

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as tfl
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from MNN import expr, nn


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


inputs = np.random.default_rng(1).uniform(-6, 6, (1, 4, 4, 8)).astype(np.float32)
for activation, step in (("RELU6", 6 / 255), ("RELU6", 0.05), ("RELU6", 0.1), ("RELU", 0.1)):
    flat = file(activation, step, -128)
    with open("model.tflite", "wb") as stream:
        stream.write(flat)
    convert = "mnnconvert -f TFLITE --modelFile model.tflite --MNNModel model.mnn --bizCode x"
    subprocess.run(convert.split(), check=True, stdout=subprocess.DEVNULL)
    x = expr.placeholder(list(inputs.shape), expr.NHWC)
    x.write(inputs)
    (y,) = nn.load_module_from_file("model.mnn", ["t0"], ["t1"]).forward([x])
    values = np.array(expr.convert(y, expr.NHWC).read()).reshape(inputs.shape)
    right, _ = run(flat, inputs)
    differ = int((np.abs(values - right) > 1.5 * step).sum())
    largest = f"LiteRT's largest value {right.max():.2f}, MNN's {values.max():.2f}"
    print(f"{activation}, range to {255 * step:.2f}: {largest}, {differ} of 128 differ")
PY

venv/bin/python program.py >now 2>log || { cat now log >&2; exit 1; }
sed -i '/^The device supports/d' now # MNN's greeting, which depends on the CPU

cat now
diff seen now >&2 || { echo "not what was seen: the lines with < were" >&2; exit 1; }
