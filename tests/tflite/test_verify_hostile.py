"""Damaged and hostile files are refused with VerificationError: no other error, no hang."""

import contextlib
import signal
import zlib

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

import metamix_tflite as mt
from metamix_tflite.encoding import FILE_IDENTIFIER
from metamix_tflite.read.files import hashed
from metamix_tflite.read.metadata import METADATA_NAME, decode, encode

# Of the fixture's model: a 3x3 convolution whose 4-bit result "block1_conv2" reads.
LAYER = "block1_conv1"


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


def declare(model, section, name, **fields):
    """Changes the file's declaration of a layer or tensor, as who edits a file would."""
    (entry,) = [m for m in model.metadata if m.name == METADATA_NAME.encode()]
    buffer = model.buffers[entry.buffer]
    declared = decode(bytes(bytearray(buffer.data)))
    declared[section][name] |= fields
    buffer.data = np.frombuffer(encode(declared), np.uint8)


@contextlib.contextmanager
def deadline(seconds):
    """A TimeoutError in the block when it runs longer: a cycle of operators never ends."""

    def stop(*_):
        raise TimeoutError(f"still running after {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def outcome(flat, bits):
    """ "passes" or "refused"; any other error is the test's."""
    try:
        with deadline(5):
            mt.verify(flat, bits)
    except mt.VerificationError:
        return "refused"
    return "passes"


@pytest.mark.parametrize("flat", [b"", b"TFL3", b"\0" * 64, b"\0\0\0\0TFL3", b"PK\3\4" * 9])
def test_what_is_no_tflite_is_refused(flat):
    with pytest.raises(mt.VerificationError, match=r"\.tflite"):
        mt.verify(flat)


@pytest.mark.parametrize("flat", [None, "model.tflite", 7])
def test_what_is_no_bytes_is_refused(flat):
    with pytest.raises(TypeError, match="Expected the bytes of a .tflite, found"):
        mt.verify(flat)


def test_truncated_files_are_refused(resnet):
    _, _, flat, bits = resnet
    lengths = [*range(0, 64, 7), *np.linspace(64, len(flat) - 1, 25).astype(int)]
    assert {outcome(flat[:length], bits) for length in lengths} == {"refused"}


def test_files_with_flipped_bytes_are_refused(resnet):
    _, _, flat, bits = resnet
    outcomes = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        damaged = bytearray(flat)
        for place in rng.integers(8, len(flat), rng.integers(1, 12)):
            damaged[place] ^= int(rng.integers(1, 256))
        outcomes.append((seed, outcome(bytes(damaged), bits if seed % 2 else None)))
    assert {state for _, state in outcomes} == {"refused"}  # by the hash, if by nothing else


def test_files_with_flipped_bytes_and_a_new_hash_are_refused_or_pass(resnet):
    _, _, flat, bits = resnet
    outcomes = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        damaged = bytearray(flat)
        for place in rng.integers(8, len(flat), rng.integers(1, 12)):
            damaged[place] ^= int(rng.integers(1, 256))
        with contextlib.suppress(mt.VerificationError):  # it cannot be read any more
            damaged = hashed(bytes(damaged))
        outcomes.append(outcome(bytes(damaged), bits if seed % 2 else None))
    # Some bytes are padding, names of inputs or versions: most are not.
    assert 100 < outcomes.count("refused") < 200


def test_flipped_bytes_of_a_declaration_are_refused_or_replayed(resnet, remake):
    outcomes = []
    for seed in range(200):
        rng = np.random.default_rng(seed)

        def edit(model, rng=rng):
            (entry,) = [m for m in model.metadata if m.name == METADATA_NAME.encode()]
            buffer = model.buffers[entry.buffer]
            text = bytearray(zlib.decompress(bytes(bytearray(buffer.data))))
            start = text.index(b'"golden"')  # this and what follows: container, versions, run
            for place in rng.integers(start, len(text), rng.integers(1, 4)):
                text[place] ^= int(rng.integers(1, 128))
            buffer.data = np.frombuffer(zlib.compress(bytes(text)), np.uint8)

        changed = remake(resnet[2], edit)
        outcomes.append(outcome(changed, resnet[3]))
        if outcomes[-1] == "passes":
            with deadline(5), contextlib.suppress(mt.VerificationError):
                (report,) = mt.replay(changed).values()
                outcomes[-1] = "exact" if report.differing == 0 else "differs"
    assert outcomes.count("refused") > 100  # others are in a code, or in a version's name
    assert {"exact", "differs"} <= set(outcomes)


@pytest.mark.parametrize("index", [-2, -1, 10**6, 2**31 - 1])
@pytest.mark.parametrize("place", ["inputs", "outputs"])
def test_operators_of_tensors_that_are_not_there(index, place, resnet, remake):
    def edit(model):
        operator = operator_of(model, LAYER)
        setattr(operator, place, [index, *list(getattr(operator, place))[1:]])

    assert outcome(remake(resnet[2], edit), resnet[3]) == "refused"


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_mac_operators_with_another_number_of_inputs(count, resnet, remake):
    def edit(model):
        operator = operator_of(model, LAYER)
        operator.inputs = (list(operator.inputs) * 2)[:count]

    assert outcome(remake(resnet[2], edit), resnet[3]) == "refused"


def test_a_cycle_of_moves_is_refused(quantized, remake):
    from keras_metamix.zoo.small import small_cnn

    model, _ = quantized(small_cnn((8, 8, 1), classes=3, width=4))
    flat = mt.convert(model)

    def edit(file):
        operator = operator_of(file, "pool1")
        operator.inputs = list(operator.outputs)

    assert outcome(remake(flat, edit), model.bit_assignment) == "refused"


def test_tensors_without_quantization_are_refused(resnet, remake):
    def edit(model):
        named(model, LAYER).quantization = None

    assert outcome(remake(resnet[2], edit), resnet[3]) == "refused"


# --- files that agree with themselves -----------------------------------------------------------


def more_levels(model):
    named(model, LAYER).quantization.zeroPoint = np.array([-128])
    declare(model, "tensors", LAYER, zero_point=-128)


def not_clipped(model):
    operator_of(model, LAYER).builtinOptions.fusedActivationFunction = 0
    declare(model, "tensors", LAYER, activation="NONE")


def levels_of_no_bit_width(model):
    operator = operator_of(model, LAYER)
    operator.builtinOptions.fusedActivationFunction = schema.ActivationFunctionType.RELU_N1_TO_1
    quantization = named(model, LAYER).quantization
    quantization.zeroPoint, quantization.scale = np.array([0]), np.array([1 / 5], np.float32)
    declare(
        model,
        "tensors",
        LAYER,
        zero_point=0,
        scale=float(np.float32(1 / 5)),
        activation="RELU_N1_TO_1",
    )


@pytest.mark.parametrize(
    ("edit", "found"), [(more_levels, 8), (not_clipped, 8), (levels_of_no_bit_width, None)]
)
def test_the_bits_are_read_off_the_tensors(edit, found, resnet, remake):
    message = f"'block1_conv2': activation bits: declared 4, found {found}"
    with pytest.raises(mt.VerificationError, match=message):
        mt.verify(remake(resnet[2], edit), resnet[3])


@pytest.mark.parametrize("value", [0.0, -0.5, float("inf"), float("nan")])
def test_a_scale_that_is_none_is_named(value, resnet, remake):
    def edit(model):
        named(model, LAYER).quantization.scale = np.array([value], np.float32)
        declare(model, "tensors", LAYER, scale=value)

    with pytest.raises(mt.VerificationError, match=f"'{LAYER}': scale"):
        mt.verify(remake(resnet[2], edit), resnet[3])


def test_a_move_that_changes_the_scale_is_named(quantized, remake):
    from keras_metamix.zoo.small import small_cnn

    model, _ = quantized(small_cnn((8, 8, 1), classes=3, width=4))

    def edit(file):
        named(file, "pool1").quantization.scale = np.array([0.5], np.float32)
        declare(file, "tensors", "pool1", scale=0.5)

    with pytest.raises(mt.VerificationError, match="'pool1': scale and zero-point of a MAX"):
        mt.verify(remake(mt.convert(model), edit), model.bit_assignment)


def test_options_that_litert_ignores_are_refused(resnet, remake):
    # LiteRT takes a convolution with another operator's options for one without an activation.
    def edit(model):
        operator = operator_of(model, LAYER)
        fused = operator.builtinOptions.fusedActivationFunction
        operator.builtinOptions = schema.AddOptionsT()
        operator.builtinOptions.fusedActivationFunction = fused
        operator.builtinOptionsType = schema.BuiltinOptions.AddOptions

    with pytest.raises(mt.VerificationError, match="CONV_2D without its options"):
        mt.verify(remake(resnet[2], edit), resnet[3])


def test_another_operator_is_named(resnet, remake):
    def edit(model):
        code = model.operatorCodes[operator_of(model, "features").opcodeIndex]
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.REDUCE_PROD

    with pytest.raises(mt.VerificationError, match="'features': operator: .*found REDUCE_PROD"):
        mt.verify(remake(resnet[2], edit), resnet[3])


def second_subgraph(model):
    model.subgraphs.append(model.subgraphs[0])


def sparse_weights(model):
    named(model, f"{LAYER}/weights").sparsity = schema.SparsityParametersT()


def weights_outside_the_file(model):
    buffer = model.buffers[named(model, f"{LAYER}/weights").buffer]
    buffer.data, buffer.offset, buffer.size = None, 1 << 40, 100


def buffer_that_is_not_there(model):
    named(model, LAYER).buffer = len(model.buffers)


def short_weights(model):
    named(model, f"{LAYER}/weights").shape = [4, 3, 3, 5]


def negative_shape(model):
    named(model, LAYER).shape = [1, -8, 8, 4]


def two_tensors_of_one_name(model):
    named(model, "block1_add").name = LAYER.encode()


def weights_of_another_layer(model):
    operator = operator_of(model, LAYER)
    other = operator_of(model, "block2_conv2")
    other.inputs = [other.inputs[0], *list(operator.inputs)[1:]]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (second_subgraph, "expected one subgraph for each signature, found 2 for 1"),
        (sparse_weights, f"'{LAYER}/weights' is sparse"),
        (weights_outside_the_file, "lies outside the file"),
        (buffer_that_is_not_there, "buffer .* is not there"),
        (short_weights, f"'{LAYER}/weights': expected 180 bytes, found 144"),
        (negative_shape, f"'{LAYER}' has a shape of 4 dimensions"),
        (two_tensors_of_one_name, "the same name"),
        (weights_of_another_layer, "'block2_conv2': constants"),
    ],
)
def test_a_malformed_graph_is_refused(edit, message, resnet, remake):
    with pytest.raises(mt.VerificationError, match=message):
        mt.verify(remake(resnet[2], edit), resnet[3])


# --- small files that unpack to large ones -------------------------------------------------------


def test_a_small_file_of_shared_offsets_ends_soon():
    # A flatbuffer's vectors may point at one table many times: 200 kB that would unpack to 25 GB.
    builder = flatbuffers.Builder(1 << 19)
    name = builder.CreateString("a" * 100_000)
    schema.TensorStart(builder)
    schema.TensorAddName(builder, name)
    tensor = schema.TensorEnd(builder)
    schema.SubGraphStartTensorsVector(builder, 25_000)
    for _ in range(25_000):
        builder.PrependUOffsetTRelative(tensor)
    tensors = builder.EndVector()
    schema.SubGraphStart(builder)
    schema.SubGraphAddTensors(builder, tensors)
    graph = schema.SubGraphEnd(builder)
    schema.ModelStartSubgraphsVector(builder, 1)
    builder.PrependUOffsetTRelative(graph)
    graphs = builder.EndVector()
    schema.BufferStart(builder)
    empty = schema.BufferEnd(builder)
    schema.ModelStartBuffersVector(builder, 1)
    builder.PrependUOffsetTRelative(empty)
    buffers = builder.EndVector()
    schema.ModelStart(builder)
    schema.ModelAddSubgraphs(builder, graphs)
    schema.ModelAddBuffers(builder, buffers)
    builder.Finish(schema.ModelEnd(builder), FILE_IDENTIFIER)
    with deadline(5), pytest.raises(mt.VerificationError, match="over and over"):
        mt.verify(bytes(builder.Output()))


def test_a_declaration_that_unpacks_to_more_than_any_is_refused(resnet, remake):
    def edit(model):
        (entry,) = [m for m in model.metadata if m.name == METADATA_NAME.encode()]
        content = zlib.compress(b"{" + b" " * (1 << 26) + b"}", 9)
        model.buffers[entry.buffer].data = np.frombuffer(content, np.uint8)

    with deadline(5), pytest.raises(mt.VerificationError, match="declaration is"):
        mt.verify(remake(resnet[2], edit), resnet[3])
