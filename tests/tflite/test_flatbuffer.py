"""The flatbuffer builder: packing of few bits, shared constants, and what a file says of itself."""

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils
from hypothesis import given
from hypothesis import strategies as st

from metamix_tflite.encoding import Op, TensorType, packed, unpacked
from metamix_tflite.read.files import read_file
from metamix_tflite.run.runner import Runner
from metamix_tflite.write.flatbuffer import ModelBuilder, Signature


@given(st.lists(st.integers(-8, 7), max_size=40))
def test_four_bits_round_trip(values):
    content = packed(np.array(values, np.int64), 4)
    assert (content.dtype, content.size) == (np.uint8, -(-len(values) // 2))
    assert unpacked(content, 4, len(values)).tolist() == values


@given(st.lists(st.integers(-2, 1), max_size=40))
def test_two_bits_round_trip(values):
    content = packed(np.array(values, np.int64), 2)
    assert (content.dtype, content.size) == (np.uint8, -(-len(values) // 4))
    assert unpacked(content, 2, len(values)).tolist() == values


def test_the_first_integer_has_the_lowest_bits():
    # The order that LiteRT reads: element 0 in bits 0 to 3, or 0 to 1.
    np.testing.assert_array_equal(packed(np.array([1, -1, 7]), 4), [0xF1, 0x07])
    np.testing.assert_array_equal(packed(np.array([1, -1, 0, -2, -1]), 2), [0b10_00_11_01, 0b11])


@pytest.mark.parametrize("bits", [4, 2])
def test_packing_keeps_the_order_of_a_matrix(bits):
    matrix = np.arange(12).reshape(3, 4) % 2**bits - 2 ** (bits - 1)
    assert unpacked(packed(matrix, bits), bits, 12).tolist() == matrix.reshape(-1).tolist()


@pytest.mark.parametrize("values", [[8], [-9], [0, 3, -20]])
def test_wider_integers_are_refused(values):
    with pytest.raises(ValueError, match=r"INT4 holds integers of \[-8, 7\], found"):
        packed(np.array(values), 4)
    with pytest.raises(ValueError, match=r"INT2 holds integers of \[-2, 1\], found"):
        packed(np.array(values), 2)


def _model_of(*constants):
    builder = ModelBuilder("test")
    graph = builder.subgraph("main")
    source = graph.tensor("x", (1, 4), TensorType.INT8, 0.5, 0)
    for number, (data, dtype) in enumerate(constants):
        graph.tensor(f"c{number}", data.shape, dtype, 0.5, 0, data)
    target = graph.tensor("y", (1, 4), TensorType.INT8, 0.25, 0)
    graph.operator(Op.QUANTIZE, [source], [target])
    graph.operator(Op.QUANTIZE, [source], [target], version=2)
    graph.finish(Signature({"x": source}, {"y": target}))
    return builder


def _read(builder):
    return flatbuffer_utils.read_model_from_bytearray(bytearray(builder.finish()))


def test_equal_constants_share_a_buffer_and_others_do_not():
    first, second = np.array([[1, 2, 3, 4]]), np.array([[4, 3, 2, 1]])
    constants = [(first, TensorType.INT8), (second, TensorType.INT8), (first, TensorType.INT8)]
    model = _read(_model_of(*constants))
    buffers = [t.buffer for t in model.subgraphs[0].tensors]
    assert buffers[0] == buffers[-1] == 0  # no constant
    assert buffers[1] == buffers[3] != buffers[2]
    assert len(model.buffers) == 3  # buffer 0 is empty, by the schema


def test_subgraphs_share_constants():
    builder = _model_of((np.arange(4)[None], TensorType.INT8))
    graph = builder.subgraph("other")
    source = graph.tensor("x", (1, 4), TensorType.INT8, 0.5, 0)
    graph.tensor("c", (1, 4), TensorType.INT8, 0.25, 0, np.arange(4)[None])
    graph.finish(Signature({"x": source}, {"y": source}))
    model = _read(builder)
    assert len(model.buffers) == 2
    assert [d.signatureKey for d in model.signatureDefs] == [b"main", b"other"]
    assert [d.subgraphIndex for d in model.signatureDefs] == [0, 1]


def test_an_operator_code_is_stored_once_for_each_version():
    model = _read(_model_of())
    codes = [(c.builtinCode, c.version) for c in model.operatorCodes]
    assert codes == [(Op.QUANTIZE, 1), (Op.QUANTIZE, 2)]


def test_codes_above_127_have_the_schema_s_placeholder():
    builder = ModelBuilder("test")
    builder.opcode(Op.GELU, 1)
    builder.subgraph("main").finish(Signature({}, {}))
    (code,) = _read(builder).operatorCodes
    assert (code.builtinCode, code.deprecatedBuiltinCode) == (Op.GELU, 127)


def test_equal_vectors_are_written_once():
    def size(count, zero_points):
        builder = ModelBuilder("test")
        graph = builder.subgraph("main")
        for number in range(count):
            scales = np.linspace(number + 1, number + 2, 1000)  # as long, and no two alike
            graph.tensor(f"t{number:03}", (1000,), TensorType.INT32, scales, zero_points(number))
        graph.finish(Signature({}, {}))
        return len(builder.finish())

    shared = size(11, lambda number: 0) - size(1, lambda number: 0)
    apart = size(11, lambda number: number) - size(1, lambda number: 0)
    assert apart - shared >= 10 * 8 * 1000  # int64, and lengths


def test_quantization_is_written_per_channel():
    builder = ModelBuilder("test")
    graph = builder.subgraph("main")
    scales = np.array([0.5, 0.25, 0.125], np.float32)
    graph.tensor("w", (1, 2, 2, 3), TensorType.INT8, scales, 0, np.zeros((1, 2, 2, 3)), 3)
    graph.finish(Signature({}, {}))
    quantization = _read(builder).subgraphs[0].tensors[0].quantization
    np.testing.assert_array_equal(quantization.scale, scales)
    np.testing.assert_array_equal(quantization.zeroPoint, [0, 0, 0])
    assert quantization.quantizedDimension == 3


def test_options_are_those_of_the_schema():
    builder = ModelBuilder("test")
    graph = builder.subgraph("main")
    tensor = graph.tensor("x", (1, 4), TensorType.INT8, 0.5, 0)
    options = schema.AddOptionsT()
    options.fusedActivationFunction = schema.ActivationFunctionType.RELU
    graph.operator(Op.ADD, [tensor, tensor], [tensor], options, 2)
    graph.finish(Signature({"x": tensor}, {"y": tensor}))
    (operator,) = _read(builder).subgraphs[0].operators
    assert operator.builtinOptionsType == schema.BuiltinOptions.AddOptions
    assert operator.builtinOptions.fusedActivationFunction == schema.ActivationFunctionType.RELU


def _dense_without_bias():
    """The sums of four floats, twice; TensorFlow's converter names an absent bias as tensor -1."""
    builder = ModelBuilder("test")
    graph = builder.subgraph("serving_default")
    values = graph.tensor("x", (1, 4), TensorType.FLOAT32)
    weights = graph.tensor("w", (2, 4), TensorType.FLOAT32, data=np.ones((2, 4)))
    output = graph.tensor("y", (1, 2), TensorType.FLOAT32)
    options = schema.FullyConnectedOptionsT()
    graph.operator(Op.FULLY_CONNECTED, [values, weights, -1], [output], options)
    graph.finish(Signature({"x": values}, {"y": output}))
    return builder.finish()


def test_an_absent_bias_is_left_out():
    flat = _dense_without_bias()
    (operator,) = read_file(flat).operators
    assert operator.inputs == (0, 1)
    np.testing.assert_array_equal(Runner(flat).predict(np.ones((1, 4), np.float32)), [[4, 4]])


def test_constants_behind_the_flatbuffer():
    """Where other tools write those of large files."""
    flat = _dense_without_bias()
    model, place = flatbuffer_utils.read_model_from_bytearray(bytearray(flat)), len(flat) + 64
    buffer = model.buffers[model.subgraphs[0].tensors[1].buffer]
    content, buffer.data = bytes(buffer.data), None
    buffer.offset, buffer.size = place, len(content)
    moved = bytes(flatbuffer_utils.convert_object_to_bytearray(model)).ljust(place, b"\0")
    weights = read_file(moved + content).tensors[1]
    np.testing.assert_array_equal(weights.data, np.ones((2, 4)))
    with pytest.raises(ValueError, match="lies outside the file"):
        read_file(moved)
