"""`metamix-verify`: what it prints, its status, and that ai-edge-litert and NumPy are enough."""

import json
import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import ai_edge_litert
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

import metamix_tflite as mt
from metamix_tflite.run import interpreter
from metamix_tflite.verification import main
from metamix_tflite.verification.command import runtime_versions

SOURCES = Path(mt.__file__).parent.parent


@pytest.fixture
def command(monkeypatch, capsys):
    """command(*arguments) -> (status, stdout, stderr) of a run in this process."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["metamix-verify", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main.run()
        out, err = capsys.readouterr()
        if isinstance(stopped.value.code, str):  # what Python prints to stderr, with status 1
            return 1, out, err + stopped.value.code
        return stopped.value.code, out, err

    return call


@pytest.fixture
def saved(resnet, tmp_path):
    """A file that was told of a training run."""
    path = tmp_path / "model.tflite"
    path.write_bytes(mt.convert(resnet[0], run={"title": "resnet", "accuracy": 0.5}))
    return path


def test_an_exact_file(saved, command, resnet):
    status, out, err = command(saved, f"--json={saved.parent / 'found.json'}")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert f"  replayed by ai-edge-litert {ai_edge_litert.__version__}, numpy " in out
    assert lines[0] == f"{saved}: {saved.stat().st_size:,} bytes, unchanged, as declared"
    assert '  title: "resnet"' in lines and "  accuracy: 0.5" in lines
    layers = "10 layers, activations of 8, 4, 3, 2 bits, weights of 8, 4, 3, 2"
    assert any(line.startswith(f"  serving_default: {layers}, ") for line in lines)
    replays = [line.split()[:6] for line in lines if "values differ" in line]
    assert [replay[0] for replay in replays] == ["xnnpack", "builtin", "reference"]
    assert replays[0][1:] == ["0", "of", "20", "values", "differ,"]
    assert lines[-1] == "exact: XNNPACK gives the trained integers"

    found = json.loads((saved.parent / "found.json").read_text())
    assert found["exact"] is True and found["run"]["accuracy"] == 0.5
    assert found["signatures"]["serving_default"]["bits"] == {
        name: [resnet[3].activation_bits[name], bits]
        for name, bits in resnet[3].weight_bits.items()
    }
    row = {"signature": "serving_default", "kernels": "xnnpack", "images": 4, "values": 20}
    assert found["replays"][0] == row | {"differing": 0, "max_steps": 0, "delegated": True}
    assert [replay["kernels"] for replay in found["replays"]] == ["xnnpack", "builtin", "reference"]
    assert {p.name for p in saved.parent.iterdir()} == {"model.tflite", "found.json"}


def test_what_others_changed_is_reported_and_the_file_replayed(saved, command, remake):
    def edit(model):
        entry, buffer = schema.MetadataT(), schema.BufferT()
        buffer.data = np.frombuffer(b"theirs", np.uint8)
        model.buffers.append(buffer)
        entry.name, entry.buffer = b"TFLITE\nMETADATA" * 99, len(model.buffers) - 1
        model.metadata.append(entry)

    saved.write_bytes(remake(saved.read_bytes(), edit, rehash=False))
    with zipfile.ZipFile(saved, "a") as archive:
        archive.writestr("labels.txt", "a")
    json_file = saved.parent / "found.json"
    status, out, err = command(saved, "--kernels=xnnpack", f"--json={json_file}")
    assert (status, err) == (0, "")
    first, entry, file, *others = out.splitlines()
    packed = "packed anew by others, graph, weights and declaration as written:"
    assert first == f"{saved}: {saved.stat().st_size:,} bytes, {packed}"
    assert entry.startswith("    metadata 'TFLITE") and len(entry) < 400
    assert file == "    file 'labels.txt' was added"
    assert others[-1] == "exact: XNNPACK gives the trained integers"
    assert json.loads(json_file.read_text())["changes"][1] == "file 'labels.txt' was added"


def test_operating_points(resnet, command, tmp_path):
    path = tmp_path / "points.tflite"
    path.write_bytes(mt.convert(resnet[0], operating_points={"a": resnet[3], "b": resnet[3]}))
    status, out, _ = command(path, "--kernels=xnnpack", "--threads=2")
    assert status == 0
    assert out.count("0 of 20 values differ") == 2
    assert "  a: 10 layers" in out and "  b: 10 layers" in out


def test_other_integers_are_named(saved, remake, command):
    def edit(model):
        (tensor,) = [t for t in model.subgraphs[0].tensors if t.name == b"logits/bias"]
        buffer = model.buffers[tensor.buffer]
        biases = np.frombuffer(bytes(bytearray(buffer.data)), np.int32) + 10_000
        buffer.data = np.frombuffer(biases.tobytes(), np.uint8)

    saved.write_bytes(remake(saved.read_bytes(), edit))
    status, out, err = command(saved)
    assert (status, out) == (1, "")
    assert "Layer 'logits': bias: declared checksum" in err


def test_a_runtime_that_rounds_otherwise_is_reported(saved, command, monkeypatch):
    # As an XNNPACK with another requantization would: one value is a step higher.
    invoke = mt.Runner.invoke

    def off_by_one(runner, *arrays):
        (output,) = invoke(runner, *arrays)
        (step,) = np.unique(np.diff(np.unique(output)))[:1]
        output[0, 0] += step
        return [output]

    monkeypatch.setattr(mt.Runner, "invoke", off_by_one)
    status, out, _ = command(saved, "--kernels=xnnpack")
    assert status == 1
    assert "xnnpack    4 of 20 values differ" in out
    assert out.splitlines()[-1] == "NOT EXACT: XNNPACK does not give the trained integers"
    assert command(saved, "--kernels=reference")[0] == 0  # nothing was promised of these


def refuse(monkeypatch, kernel_sets):
    """Makes LiteRT one whose kernel sets lack an operator, as 1.4's reference kernels do."""
    made = interpreter.Interpreter
    lacking = {interpreter.KERNELS[name] for name in kernel_sets}

    def make(**settings):
        if settings["experimental_op_resolver_type"] in lacking:
            raise ValueError("Didn't find op for builtin opcode 'FULLY_CONNECTED' version '12'.")
        return made(**settings)

    monkeypatch.setattr(interpreter, "Interpreter", make)


REFUSED = "Didn't find op for builtin opcode 'FULLY_CONNECTED' version '12'."


@pytest.mark.parametrize("points", [None, ("a", "b")])
def test_a_kernel_set_that_refuses_does_not_end_it(
    points, resnet, saved, command, monkeypatch, tmp_path
):
    if points:
        bits = dict.fromkeys(points, resnet[3])
        saved.write_bytes(mt.convert(resnet[0], operating_points=bits))
    refuse(monkeypatch, ["reference"])
    status, out, err = command(saved, f"--json={tmp_path / 'found.json'}")
    assert (status, err) == (0, "")
    assert out.splitlines()[-2] == f"  reference  refused: {REFUSED}"
    assert out.splitlines()[-1] == "exact: XNNPACK gives the trained integers"
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["refused"] == {"reference": REFUSED}
    assert {replay["kernels"] for replay in found["replays"]} == {"xnnpack", "builtin"}

    refuse(monkeypatch, ["xnnpack"])
    status, out, _ = command(saved)
    assert (status, out.splitlines()[-1][:9]) == (1, "NOT EXACT")


def test_a_runtime_that_refuses_the_file_is_one_line(saved, command, monkeypatch):
    refuse(monkeypatch, interpreter.KERNELS)
    status, out, err = command(saved)
    assert (status, out, err.count("\n")) == (1, "", 0)
    version = runtime_versions()["ai-edge-litert"]
    assert err == f"metamix-verify: {saved}: ai-edge-litert {version} does not run it: {REFUSED}"


def test_a_partition_that_is_missing_is_reported(saved, command, monkeypatch):
    # As LiteRT 1.2's XNNPACK, which leaves INT4 FULLY_CONNECTED to the builtin kernels.
    builtin = interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    monkeypatch.setitem(interpreter.KERNELS, "xnnpack", builtin)
    status, out, _ = command(saved, "--kernels=xnnpack")
    assert status == 1
    assert out.splitlines()[-1].endswith("runs a part of it; a newer one may run all")


def test_smallest_promises_nothing(resnet, command, tmp_path):
    path = tmp_path / "smallest.tflite"
    path.write_bytes(mt.convert(resnet[0], weight_container="smallest"))
    status, out, _ = command(path)
    assert status == 0
    assert out.splitlines()[-1].startswith("nothing promised")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--kernels=fast", "kernels: expected one of .*'xnnpack'.* found 'fast'"),
        ("--kernels=", "kernels: expected one of .* found ''"),
        ("--threads=0", "--threads: expected at least 1, found 0"),
        ("--json=no/found.json", "--json: expected a folder no, found none"),
    ],
)
def test_a_bad_flag_is_named(flag, message, saved, command):
    status, out, err = command(saved, flag)
    assert (status, out, err.count("\n")) == (1, "", 0)
    assert err.startswith("metamix-verify: ")
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(err)


def damaged(flat):
    changed = bytearray(flat)
    changed[len(flat) // 2] ^= 1
    return bytes(changed)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda flat: b"", "found 0 bytes"),
        (lambda flat: b"# text" * 9, "Expected the bytes of a .tflite"),
        (lambda flat: flat[: len(flat) // 2], ""),
        (damaged, ""),
    ],
)
def test_another_file_is_one_line(content, message, saved, command):
    saved.write_bytes(content(saved.read_bytes()))
    status, out, err = command(saved)
    assert (status, out, err.count("\n")) == (1, "", 0)
    assert err.startswith(f"metamix-verify: {saved}: ") and message in err


def test_a_stranger_s_file_is_one_line(saved, remake, command):
    def no_metadata(model):
        model.metadata = []

    saved.write_bytes(remake(saved.read_bytes(), no_metadata))
    assert "it was not written by convert" in command(saved)[2]


def test_a_missing_file_is_one_line(command):
    status, out, err = command("none.tflite")
    assert (status, out) == (1, "")
    assert err == "metamix-verify: No such file or directory: 'none.tflite'"


def test_golden_outputs_of_another_graph_are_refused(saved, remake, command):
    # Of an honest file only its declaration changed, and the hash with it.
    from metamix_tflite.read.metadata import METADATA_NAME, decode, encode

    def edit(model, change):
        (entry,) = [m for m in model.metadata if m.name == METADATA_NAME.encode()]
        buffer = model.buffers[entry.buffer]
        declared = decode(bytes(bytearray(buffer.data)))
        change(declared["golden"])
        buffer.data = np.frombuffer(encode(declared), np.uint8)

    flat = saved.read_bytes()
    changes = {
        "expected 20 values, found 3": lambda g: g["outputs"][0].update(codes="AAAA"),
        "expected 8 values, found 20": lambda g: g["outputs"][0].update(stride=3),
        "expected 10 values, found 20": lambda g: g.update(images=2),
        "expected 1, found 2": lambda g: g["outputs"].append(g["outputs"][0]),
    }
    for message, change in changes.items():
        saved.write_bytes(remake(flat, lambda model, change=change: edit(model, change)))
        status, out, err = command(saved)
        assert (status, out) == (1, "")
        assert message in err
    other = "AAAAAAAAAAAAAAAAAAAAAAAAAAA="  # 20 zeros
    saved.write_bytes(
        remake(flat, lambda m: edit(m, lambda g: g["outputs"][0].update(codes=other)))
    )
    assert command(saved, "--kernels=xnnpack")[0] == 1


def test_mutated_files_end_in_one_line_or_pass(saved, command):
    flat, packed = saved.read_bytes(), 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        changed = bytearray(flat)
        for place in rng.integers(8, len(flat), rng.integers(1, 6)):
            changed[place] ^= int(rng.integers(1, 256))
        saved.write_bytes(bytes(changed))
        status, out, err = command(saved, "--kernels=xnnpack")
        if status == 0:  # of bytes that mean nothing: they lie between the tables
            assert "packed anew by others" in out and "as written" in out, seed
            packed += 1
            continue
        assert (status, out, err.count("\n")) == (1, "", 0), seed
    assert packed < 6


def test_help(command):
    status, out, _ = command("--help")
    assert status == 0
    assert "--kernels" in out


# --- where nothing else is installed --------------------------------------------------------------

ALONE = """
    import sys

    OTHERS = {"tensorflow", "keras", "absl", "rich", "keras_metamix", "scipy"}

    class Refuse:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in OTHERS:
                raise ModuleNotFoundError(f"{name} is not installed here", name=name)

    sys.meta_path.insert(0, Refuse())
    from metamix_tflite.verification import main
    main.run()
"""


# LiteRT 1.0 has no schema; tflite-runtime is another package.
@pytest.mark.parametrize(
    "missing", ["numpy", "ai_edge_litert", "ai_edge_litert.schema_py_generated"]
)
def test_a_litert_that_cannot_be_used_is_one_line(missing, saved):
    condition = 'name.partition(".")[0] in OTHERS'
    program = textwrap.dedent(ALONE).replace(condition, f"name == {missing!r}")
    result = subprocess.run(
        [sys.executable, "-c", program, saved], capture_output=True, text=True, timeout=120
    )
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    expected = "expected ai-edge-litert 1.1.1 or newer and a NumPy that it runs with"
    assert result.stderr.startswith(f"metamix-verify: {expected}: ")
    assert missing.rpartition(".")[2] in result.stderr.removeprefix(expected)


@pytest.mark.parametrize("version", ["1.0.1", "1.1.0", "unknown"])
def test_a_litert_that_is_too_old_is_one_line(version, saved, command, monkeypatch):
    monkeypatch.setattr(ai_edge_litert, "__version__", version)
    status, out, err = command(saved)
    assert (status, out, err.count("\n")) == (1, "", 0)
    assert err.endswith(f"1.1.1 or newer and a NumPy that it runs with: found {version}")


@pytest.mark.parametrize("version", ["1.1.1", "2.0.2a1", "2.4.0.dev20261026"])
def test_a_litert_that_is_new_enough(version, monkeypatch):
    monkeypatch.setattr(ai_edge_litert, "__version__", version)
    main.require_litert()


def test_no_other_library_is_imported(saved):
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ALONE), saved],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.endswith("exact: XNNPACK gives the trained integers\n")


@pytest.mark.slow
def test_litert_and_numpy_alone_are_enough(saved, tmp_path):
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    install = [python, "-m", "pip", "install", "--quiet", "--retries=1", "--timeout=10"]
    installed = subprocess.run(
        [*install, "ai-edge-litert", "numpy"], capture_output=True, text=True
    )
    if installed.returncode:
        pytest.skip(f"pip cannot install ai-edge-litert here: {installed.stderr.strip()[-300:]}")
    result = subprocess.run(
        [python, "-m", "metamix_tflite.verification.main", saved],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCES)},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.endswith("exact: XNNPACK gives the trained integers\n")
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    )
    names = {line.partition("==")[0].lower() for line in listed.stdout.splitlines()}
    assert not names & {"tensorflow", "keras", "absl-py", "rich", "keras-metamix"}
