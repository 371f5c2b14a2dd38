"""`verify` notices every change of a file and names the layer."""

import json
import zlib

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix.zoo.small import small_cnn
from metamix_tflite.encoding import unpacked
from metamix_tflite.read.golden_inputs import GENERATOR
from metamix_tflite.read.metadata import METADATA_NAME, decode, encode

Fused = schema.ActivationFunctionType
# Of the fixture's model: a 3x3 convolution with 3-bit weights, in INT8, and 8-bit input.
LAYER = "block2_conv1"


def named(model, name):
    """The tensor of a name."""
    (found,) = [t for t in model.subgraphs[0].tensors if t.name == name.encode()]
    return found


def operator_of(model, name):
    """The operator that writes the tensor of a name."""
    graph = model.subgraphs[0]
    index = [t.name for t in graph.tensors].index(name.encode())
    (found,) = [o for o in graph.operators if index in list(o.outputs)]
    return found


def set_data(model, tensor, array):
    """Gives a tensor a buffer of its own: equal constants share theirs."""
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
    model.buffers.append(buffer)
    tensor.buffer = len(model.buffers) - 1


def data_of(model, tensor, dtype):
    return np.asarray(model.buffers[tensor.buffer].data, np.uint8).view(dtype).copy()


def scale(model):
    tensor = named(model, LAYER)
    tensor.quantization.scale = np.asarray(tensor.quantization.scale) * np.float32(1.01)


def scale_by_one_bit(model):
    tensor = named(model, LAYER)
    tensor.quantization.scale = np.nextafter(
        np.asarray(tensor.quantization.scale, np.float32), np.float32(9)
    )


def zero_point(model):
    tensor = named(model, LAYER)
    tensor.quantization.zeroPoint = np.asarray(tensor.quantization.zeroPoint) + 1


def weight_integer(model):
    tensor = named(model, f"{LAYER}/weights")
    integers = data_of(model, tensor, np.int8)
    integers[5] = 1 - abs(integers[5])
    set_data(model, tensor, integers)


def weight_beyond_its_bits(model):
    tensor = named(model, f"{LAYER}/weights")
    integers = data_of(model, tensor, np.int8)
    integers[5] = 4  # 3 bits end at 3
    set_data(model, tensor, integers)


def weight_scale(model):
    tensor = named(model, f"{LAYER}/weights")
    scales = np.array(tensor.quantization.scale, np.float32)
    scales[1] *= 2
    tensor.quantization.scale = scales


def weight_zero_point(model):
    tensor = named(model, f"{LAYER}/weights")
    zeros = np.array(tensor.quantization.zeroPoint, np.int64)
    zeros[1] = 1
    tensor.quantization.zeroPoint = zeros


def weight_channel_axis(model):
    tensor = named(model, f"{LAYER}/weights")
    tensor.quantization.quantizedDimension = 3


def weights_of_no_buffer(model):
    named(model, f"{LAYER}/weights").buffer = 0


def bias_integer(model):
    tensor = named(model, f"{LAYER}/bias")
    set_data(model, tensor, data_of(model, tensor, np.int32) + 1)


def bias_scale(model):
    tensor = named(model, f"{LAYER}/bias")
    tensor.quantization.scale = np.asarray(tensor.quantization.scale) * np.float32(2)


def renamed_layer(model):
    named(model, LAYER).name = b"somebody"


FILE_EDITS = {
    scale: rf"'{LAYER}': scale: declared",
    scale_by_one_bit: rf"'{LAYER}': scale: declared",
    zero_point: rf"'{LAYER}': zero-point: declared",
    weight_integer: rf"'{LAYER}': weights: declared",
    weight_beyond_its_bits: rf"'{LAYER}': weight range: declared \+-3 \(3 bits\), found 4",
    weight_scale: rf"'{LAYER}': weight scales: declared",
    weight_zero_point: rf"'{LAYER}': weight zero-points: declared 0",
    weight_channel_axis: rf"'{LAYER}'",
    weights_of_no_buffer: rf"'{LAYER}(/weights)?'",
    bias_integer: rf"'{LAYER}': bias: declared",
    bias_scale: rf"'{LAYER}': bias scale: declared",
    renamed_layer: rf"'({LAYER}|somebody)'",
}


@pytest.mark.parametrize("edit", FILE_EDITS, ids=lambda edit: edit.__name__)
def test_every_edit_of_a_file_is_named(edit, resnet, remake):
    _, _, flat, bits = resnet
    changed = remake(flat, edit)
    for declared in (bits, None):
        with pytest.raises(mt.VerificationError, match=FILE_EDITS[edit]):
            mt.verify(changed, declared)


@pytest.mark.parametrize(
    ("name", "activation", "reader"),
    [
        ("block1_conv1", "NONE", "block1_conv2"),
        ("block1_conv1", "RELU6", "block1_conv2"),
        ("block1_conv1_input", "NONE", "block1_conv1"),
        ("block2_conv1", "NONE", "block2_conv2"),
        # What no MAC layer reads directly has 8 bits; another activation is another network.
        ("stem", "RELU_N1_TO_1", "stem"),
        ("block2_add", "RELU6", "block2_add"),
        ("logits", "RELU", "logits"),
    ],
)
@pytest.mark.parametrize("against", ["bits", "itself"])
def test_a_changed_activation_is_named(name, activation, reader, against, resnet, remake):
    _, _, flat, bits = resnet

    def edit(model):
        operator = operator_of(model, name)
        operator.builtinOptions.fusedActivationFunction = getattr(Fused, activation)

    with pytest.raises(mt.VerificationError, match=f"'({name}|{reader})'"):
        mt.verify(remake(flat, edit), bits if against == "bits" else None)


def test_a_changed_container_is_named(resnet, remake):
    model, *_ = resnet
    smallest = mt.convert(model, weight_container="smallest")
    mt.verify(smallest, model.bit_assignment)

    def edit(file):
        tensor = named(file, f"{LAYER}/weights")
        assert tensor.type == schema.TensorType.INT4
        content = data_of(file, tensor, np.uint8)
        tensor.type = schema.TensorType.INT8
        set_data(file, tensor, unpacked(content, 4, int(np.prod(tensor.shape))))

    with pytest.raises(mt.VerificationError, match=f"'{LAYER}': container: declared INT4"):
        mt.verify(remake(smallest, edit))


def test_a_file_without_declaration_is_refused(resnet, remake):
    def edit(model):
        model.metadata = []

    with pytest.raises(mt.VerificationError, match="not written by convert"):
        mt.verify(remake(resnet[2], edit), resnet[3])


def declaration_of(model):
    """The buffer of the file's declaration."""
    (entry,) = [m for m in model.metadata if m.name == METADATA_NAME.encode()]
    return model.buffers[entry.buffer]


GOLDEN = {"inputs": GENERATOR, "images": 2, "outputs": [{"stride": 1, "codes": "AAAA"}]}


def output(**fields):
    """GOLDEN with other fields of its output."""
    return GOLDEN | {"outputs": [GOLDEN["outputs"][0] | fields]}


def declaration_with(**fields):
    """A declaration of nothing, but for these fields."""
    declared = {"format": 3, **CPU, "versions": {}, "run": {}, "bops": 0}
    return json.dumps(declared | {"layers": {}, "tensors": {}, "outputs": 0} | fields).encode()


CPU = {"target": "cpu", "weight_container": "fast", "io": "float32"}


def declares(**fields):
    """A declaration of format 3 with these fields alone."""
    return json.dumps({"format": 3, **fields}).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}", "not of format 3 or 4"),
        (b"[1, 2]", "not of format 3 or 4"),
        (b"not json", "declaration is damaged"),
        (b"[" * 100_000, "declaration is damaged"),
        (b'{"format": 1}', "not of format 3 or 4"),
        (declares(), "target: expected"),
        (declares(**CPU | {"target": ["cpu"]}), "target: expected"),
        (declares(**CPU | {"weight_container": []}), "weight_container: expected"),
        (declares(**CPU | {"io": {"a": 1}}), "io: expected"),
        (declares(**CPU | {"target": "edgetpu"}), "weight_container: target 'edgetpu' takes"),
        (declares(**CPU), "no versions"),
        (declares(**CPU, versions={}, run=[]), "no run"),
        (declaration_with(bops="8"), "no BOPs"),
        (declaration_with(layers=3), "no layers"),
        (declaration_with(layers={"a": 3}), "'a' has other fields"),
        (declaration_with(tensors=[]), "no tensors"),
        (declaration_with(), "not declared"),
        (declaration_with(outputs=None), r"of outputs \[-1\], found 1"),
        (declaration_with(outputs=[0, {"a": 0}]), r"of outputs \[0, 0\], found 2"),
        (declaration_with(outputs=[0, 1]), r"of outputs \[0, 1\], found 1"),
        (declaration_with(golden=None), "golden outputs is damaged"),
        (declaration_with(golden={}), "golden outputs is damaged"),
        (declaration_with(golden=GOLDEN | {"inputs": "other"}), "of generator 'other', expected"),
        (declaration_with(golden=GOLDEN | {"images": 0}), "of 0 inputs and 1 outputs"),
        (declaration_with(golden=GOLDEN | {"images": True}), "of True inputs and 1 outputs"),
        (declaration_with(golden=GOLDEN | {"images": 10**6}), "of 1000000 inputs and 1 outputs"),
        (declaration_with(golden=GOLDEN | {"outputs": []}), "of 2 inputs and 0 outputs"),
        (declaration_with(golden=GOLDEN | {"outputs": [3]}), "golden outputs is damaged"),
        (declaration_with(golden=output(codes=3)), "golden outputs is damaged"),
        (declaration_with(golden=output(codes="A*==")), "golden outputs is damaged"),
        (declaration_with(golden=output(codes="AA")), "golden outputs is damaged"),
        (declaration_with(golden=output(stride=0)), "of every 0th value"),
        (declaration_with(golden=output(stride="1")), "of every '1'th value"),
    ],
)
def test_a_damaged_declaration_is_refused(content, message, resnet, remake):
    def edit(model):
        declaration_of(model).data = np.frombuffer(zlib.compress(content), np.uint8)

    with pytest.raises(mt.VerificationError, match=message):
        mt.verify(remake(resnet[2], edit), resnet[3])


@pytest.mark.parametrize("content", [b"", b"{}", zlib.compress(b'{"format": 1}')[:-1]])
def test_a_declaration_that_is_not_compressed_is_refused(content, resnet, remake):
    def edit(model):
        declaration_of(model).data = np.frombuffer(content, np.uint8)

    with pytest.raises(mt.VerificationError, match="declaration is"):
        mt.verify(remake(resnet[2], edit), resnet[3])


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("activation_bits", 2),
        ("activation_bits", 5),
        ("activation_bits", 0),
        ("activation_bits", -3),
        ("activation_bits", 4.0),
        ("weight_bits", 2),
        ("weight_bits", 10**9),
        ("weight_bits", -3),
        ("weight_bits", True),
        ("container", "INT4"),
        ("weights", 1),
        ("bias", 1),
        ("weight_scales", 1),
        ("weight_scales", "1"),
    ],
)
def test_a_declaration_of_another_layer_is_named(field, other, resnet, remake):
    def edit(model):
        buffer = declaration_of(model)
        declared = decode(bytes(bytearray(buffer.data)))
        declared["layers"][LAYER][field] = other
        buffer.data = np.frombuffer(encode(declared), np.uint8)

    with pytest.raises(mt.VerificationError, match=f"'{LAYER}'"):
        mt.verify(remake(resnet[2], edit))


def test_an_int8_file_with_fully_connected_is_refused(quantized, remake):
    model, _ = quantized(small_cnn((8, 8, 1), width=4), 0, space=kmm.SearchSpace((8,), 8))

    def edit(file):
        buffer = declaration_of(file)
        declared = decode(bytes(bytearray(buffer.data))) | {"weight_container": "int8"}
        buffer.data = np.frombuffer(encode(declared), np.uint8)

    with pytest.raises(mt.VerificationError, match="'logits': operator of target 'cpu'.*CONV_2D"):
        mt.verify(remake(mt.convert(model), edit))


def test_a_float_operator_is_named(resnet, remake):
    def edit(model):
        graph = model.subgraphs[0]
        copy = schema.TensorT()
        copy.name, copy.type = b"in_float", schema.TensorType.FLOAT32
        copy.shape, copy.buffer = [1, 5], 0
        graph.tensors.append(copy)
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.RELU
        code.version = 1
        model.operatorCodes.append(code)
        operator = schema.OperatorT()
        operator.opcodeIndex = len(model.operatorCodes) - 1
        operator.inputs, operator.outputs = list(graph.outputs), [len(graph.tensors) - 1]
        graph.operators.append(operator)

    with pytest.raises(mt.VerificationError, match="'in_float': arithmetic:.*RELU in float"):
        mt.verify(remake(resnet[2], edit))


@pytest.mark.parametrize("kind", ["activation", "weight"])
def test_bits_with_another_value_name_the_layer(kind, resnet):
    _, _, flat, bits = resnet
    for name in bits.weight_bits:
        maps = {"activation": dict(bits.activation_bits), "weight": dict(bits.weight_bits)}
        found = maps[kind][name]
        maps[kind][name] = 5
        other = kmm.BitAssignment(maps["activation"], maps["weight"])
        message = f"'{name}': {kind} bits: declared 5, found {found}"
        with pytest.raises(mt.VerificationError, match=message):
            mt.verify(flat, other)


def test_bits_of_another_model_name_a_layer(resnet):
    _, _, flat, bits = resnet
    names = dict.fromkeys(["conv1", "conv2", "logits"], 8)
    with pytest.raises(mt.VerificationError, match="'stem' is in the file and not in the assign"):
        mt.verify(flat, kmm.BitAssignment(names, names))
    more = {**bits.weight_bits, "head": 8}
    with pytest.raises(mt.VerificationError, match="'head'"):
        mt.verify(flat, kmm.BitAssignment({**bits.activation_bits, "head": 8}, more))


def test_the_untouched_file_passes_and_is_returned(resnet, remake):
    _, _, flat, bits = resnet
    graph = mt.verify(flat, bits)
    assert set(graph.metadata["layers"]) == set(bits.weight_bits)
    mt.verify(remake(flat, lambda model: None), bits)
