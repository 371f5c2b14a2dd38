#!/usr/bin/env bash
# A QUANTIZE with a zero-point other than 0 does not saturate after Arm's TOSA converter.
#
# One would expect the first operator of every quantized file to clip what lies outside its range,
# as LiteRT does and as the same converter does where the zero-point is 0: there it is one cast
# from float to int8, which saturates. With a zero-point it is a cast to int32, a sum, and a cast
# to int8, and TOSA defines a cast between integers to drop the upper bits. An input that is a
# little too large becomes one of the smallest codes.
#
# Seen with tosa-converter-for-tflite 2026.2.0, run by IREE 3.13.0, against ai-edge-litert 2.3.0 on
# x86-64, 2026-11-28.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3.11}" -m venv venv
venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check \
  ai-edge-litert==2.3.0 \
  flatbuffers==25.12.19 \
  numpy==2.4.6 \
  tosa-converter-for-tflite==2026.2.0 \
  iree-base-compiler==3.13.0 \
  iree-base-runtime==3.13.0

cat >seen <<'SEEN'
inputs [-9.0, -7.0, -1.0, 0.0, 1.0, 6.300000190734863, 6.5, 7.0]
zero-point 0, LiteRT [-128, -128, -20, 0, 20, 126, 127, 127]
zero-point 0, TOSA   [-128, -128, -20, 0, 20, 126, 127, 127]
zero-point -3, LiteRT [-128, -128, -23, -3, 17, 123, 127, 127]
zero-point -3, TOSA   [73, 113, -23, -3, 17, 123, 127, -119]
SEEN

cat >program.py <<'PY'
import subprocess

import flatbuffers
import iree.compiler
import iree.runtime
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


def through_tosa(flat, array):
    """Output of a file that went through the TOSA converter and IREE's CPU compiler."""
    with open("model.tflite", "wb") as stream:
        stream.write(flat)
    convert = "venv/bin/tosa-converter-for-tflite model.tflite --bytecode -o model.mlirbc"
    subprocess.run(convert.split(), check=True, stdout=subprocess.DEVNULL)
    target = ["--iree-llvmcpu-target-cpu=generic"]
    compiled = iree.compiler.compile_file(
        "model.mlirbc", input_type="tosa", target_backends=["llvm-cpu"], extra_args=target
    )
    module = iree.runtime.load_vm_flatbuffer(compiled, driver="local-sync")
    return module.main(array).to_host().copy()


inputs = np.array([[-9, -7, -1, 0, 1, 6.3, 6.5, 7]], np.float32)
print("inputs", inputs[0].tolist())
for zero_point in (0, -3):
    graph = Graph()
    x, y = graph.tensor((1, 8), "FLOAT32"), graph.tensor((1, 8), "INT8", 0.05, zero_point)
    graph.operator("QUANTIZE", [x], [y], options="QuantizeOptions")
    flat = graph.file([x], [y])
    print(f"zero-point {zero_point}, LiteRT", run(flat, inputs)[0][0].tolist())
    print(f"zero-point {zero_point}, TOSA  ", through_tosa(flat, inputs)[0].tolist())
PY

venv/bin/python program.py >now 2>log || { cat now log >&2; exit 1; }
cat now
diff seen now >&2 || { echo "not what was seen: the lines with < were" >&2; exit 1; }
