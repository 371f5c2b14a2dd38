"""`web`: a browser that a script plays, and LiteRT.js in a real Chromium where both are there."""

import base64
import dataclasses
import json
import shutil
import stat
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

import metamix_tflite as mt
from metamix_tflite.devices import DeviceUnavailable, measure, web
from metamix_tflite.devices.web_server import PageServer
from metamix_tflite.read.files import only_signature
from metamix_tflite.read.metadata import METADATA_NAME, decode, encode
from metamix_tflite.verification import web_page
from metamix_tflite.verification.command import main as verify_main
from metamix_tflite.verification.command import parse_flags
from metamix_tflite.verification.replay import golden_of
from metamix_tflite.verification.web_page import LITERTJS, Plan, page_content, web_file

INSTALL = f"npm install @litertjs/core@{LITERTJS}"


@pytest.fixture
def litertjs(tmp_path):
    """A folder as npm's, with nothing in its files."""
    folder = tmp_path / "node_modules" / "@litertjs"
    for part in (*web_page._litertjs_files([*web_page.BUILDS]), "wasm-utils/package.json"):
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        (folder / part).write_bytes(part.encode())
    (folder / "core" / "package.json").write_text(json.dumps({"version": LITERTJS}))
    return folder


# Does what page/replay.js does, with LiteRT here; the last argument is the address.
PLAYED = """
import base64, json, sys, urllib.request
import numpy as np
from metamix_tflite.run.runner import Runner

def get(path):
    with urllib.request.urlopen(sys.argv[-1] + path) as answer:
        assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        return answer.read()

def post(found):
    request = urllib.request.Request(sys.argv[-1] + plan["report"], json.dumps(found).encode())
    urllib.request.urlopen(request)

assert "--headless" in sys.argv
assert b"replay.js" in get("") and b"loadLiteRt" in get("replay.js")
plan = json.loads(get("plan.json"))
builds = []
for build in plan["builds"]:
    rows = []
    for file in plan["files"]:
        runner, content = Runner(get(file["model"])), get(file["images"])
        images = []
        while content:
            images.append([])
            for end in file["inputs"]:
                kind, size = np.dtype(end["type"]), int(np.prod(end["shape"]))
                array = np.frombuffer(content, kind, size).reshape(end["shape"])
                content = content[array.nbytes:]
                images[-1].append(array)
        row = {"name": file["name"], "times": [1.0, 2.0, 3.0]}
        if file["golden"]:
            outputs = [runner.invoke(*image) for image in images[:-1]]
            row["outputs"] = [[base64.b64encode(o.tobytes()).decode() for o in i] for i in outputs]
        rows.append(row)
    builds.append({"build": build, "rows": rows})
found = {"agent": "played", "isolated": True, "builds": builds}
"""


@pytest.fixture
def played(tmp_path, monkeypatch):
    """played(how it ends) -> the program of a browser."""
    packages = Path(mt.__file__).parent.parent
    monkeypatch.setenv("PYTHONPATH", str(packages))

    def make(end="post(found)", beginning=PLAYED):
        path = tmp_path / "browser"
        path.write_text(f"#!{sys.executable}\n{beginning}{textwrap.dedent(end)}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return make


@pytest.fixture(scope="module")
def stranger():
    """A float file of another converter; its batch is one, or any."""
    import tensorflow as tf

    def make(batch):
        image = keras.Input(batch_shape=(batch, 4, 4, 2), name="image")
        model = keras.Model(image, layers.Flatten()(layers.Conv2D(3, 3)(image)))
        return tf.lite.TFLiteConverter.from_keras_model(model).convert()

    return make


def edited(remake, flat, change):
    """A file whose golden outputs are declared otherwise."""

    def edit(model):
        (entry,) = [m for m in model.metadata if m.name == METADATA_NAME.encode()]
        declared = decode(bytes(bytearray(model.buffers[entry.buffer].data)))
        change(declared["golden"]["outputs"])
        model.buffers[entry.buffer].data = np.frombuffer(encode(declared), np.uint8)

    return remake(flat, edit)


def three_off(outputs):
    codes = np.frombuffer(base64.b64decode(outputs[0]["codes"]), np.int8).copy()
    codes[[0, 3, 7]] ^= (1, 2, 1)
    outputs[0]["codes"] = base64.b64encode(codes.tobytes()).decode()


def test_what_the_page_sends_is_judged_and_timed(resnet, played, litertjs, remake, stranger):
    files = {
        "stock": stranger(1),
        "ours": resnet[2],
        "int8": mt.convert(resnet[0], "web"),
        "other": edited(remake, resnet[2], three_off),
        "silent": mt.convert(resnet[0], weight_container="smallest", golden=0),
    }
    options = {"browser": played(), "litertjs": litertjs, "builds": ("relaxed", "compat")}
    report = measure("web", files, **options, timeout=60)
    assert [row["build"] for row in report.rows] == ["relaxed"] * len(files) + ["compat"] * len(
        files
    )
    found = {row["file"]: row for row in report.rows}
    assert found["ours"]["values"] == found["int8"]["values"] == 20
    assert found["ours"]["differing"] == found["int8"]["differing"] == 0
    assert (found["other"]["differing"], found["other"]["max_steps"]) == (3, 2)
    assert found["stock"]["values"] is found["silent"]["values"] is None
    times = [found["ours"][key] for key in ("low_us", "median_us", "high_us")]
    np.testing.assert_allclose(times, [1200.0, 2000.0, 2800.0])
    assert found["ours"]["over_first_fraction"] == 1.0
    assert f"LiteRT.js {LITERTJS} in played." in report.notes
    assert not any("threads" in note for note in report.notes)
    assert any("Files without golden outputs" in note for note in report.notes)
    (slow,) = [note for note in report.notes if "no SIMD kernels" in note]
    assert slow.startswith("silent: ") and 'convert(target="web")' in slow


END = """
builds[-1] = {"build": "threads", %s"error": "what LiteRT.js says"}
post(found)
"""


def test_a_build_that_the_browser_lacks_is_reported(resnet, played, litertjs):
    options = {"litertjs": litertjs, "threads": 3, "timeout": 60}
    report = measure("web", {"a": resnet[2]}, browser=played(END % ""), **options)
    assert [row["build"] for row in report.rows] == ["relaxed", "compat"]
    assert "Build 'threads' does not run in this browser: what LiteRT.js says" in report.notes
    with pytest.raises(OSError, match="does not run in this browser: what LiteRT.js says"):
        options["builds"] = ("threads",)
        measure("web", {"a": resnet[2]}, browser=played(END % ""), **options)
    with pytest.raises(OSError, match=r"a: LiteRT.js \(threads\) fails on it: what LiteRT.js says"):
        measure("web", {"a": resnet[2]}, browser=played(END % '"file": "a", '), **options)


@pytest.mark.parametrize(
    ("program", "timeout", "message"),
    [
        ("import sys; sys.exit(7)", 60, "browser: exit status 7, without a result"),
        ("import time; time.sleep(60)", 2, r"sent no result within 2 s \(--timeout\)"),
    ],
)
def test_a_browser_that_sends_nothing(program, timeout, message, resnet, played, litertjs):
    browser = played(program, "")
    with pytest.raises(OSError, match=message):
        measure("web", {"a": resnet[2]}, browser=browser, litertjs=litertjs, timeout=timeout)


def test_any_browser_by_hand(resnet, litertjs, capsys):
    found = []

    def call():
        options = {"host": "127.0.0.1", "litertjs": litertjs, "builds": ("relaxed",)}
        found.append(measure("web", {"a": resnet[2]}, timeout=60, **options))

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    printed = ""
    while "browser" not in printed and thread.is_alive():
        printed += capsys.readouterr().err
        time.sleep(0.05)
    address = printed.split()[1]
    with urllib.request.urlopen(f"{address}plan.json") as answer:
        plan = json.load(answer)
    for path in ("../setup.py", "litertjs/core/package.json", "litertjs/../0.tflite"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{address}{path}")
    zeros = base64.b64encode(bytes(4 * 5)).decode()
    row = {"name": "a", "times": [1.0], "outputs": [[zeros]] * 4}
    sent = {"agent": "hand", "builds": [{"build": "relaxed", "rows": [row]}]}
    for path, body in (("other", b"{}"), (plan["report"], b"")):
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(urllib.request.Request(f"{address}{path}", body, method="POST"))
    urllib.request.urlopen(f"{address}{plan['report']}", json.dumps(sent).encode())
    thread.join(30)
    ((row,),) = [report.rows for report in found]
    golden = golden_of(mt.verify(resnet[2]))
    (grid,) = golden.grids
    assert row["differing"] == np.count_nonzero(golden.expected[0] != grid[1]) > 0


def test_what_is_missing_is_named_with_its_remedy(resnet, litertjs, tmp_path, monkeypatch):
    files = {"a": resnet[2]}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        DeviceUnavailable, match=r"no Chromium: .* apt-get install chromium.*--host"
    ):
        measure("web", files)
    with pytest.raises(DeviceUnavailable, match="found no firefox:"):
        measure("web", files, browser="firefox")
    options = {"host": "127.0.0.1", "timeout": 1}
    with pytest.raises(DeviceUnavailable, match=f"found no core/ and .*: {INSTALL}"):
        measure("web", files, litertjs=tmp_path, **options)
    (litertjs / "core/wasm/litert_wasm_internal.wasm").unlink()
    with pytest.raises(DeviceUnavailable, match=f"no .*litert_wasm_internal.wasm: {INSTALL}"):
        measure("web", files, **options)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    with pytest.raises(OSError, match="sent no result"):  # found above, as Node.js does
        measure("web", files, builds=("compat",), **options)
    shutil.rmtree(litertjs)
    with pytest.raises(DeviceUnavailable, match=f"no node_modules/@litertjs here: {INSTALL}"):
        measure("web", files, **options)


def test_files_that_litertjs_does_not_take_are_named(resnet, litertjs, stranger):
    options = {"host": "127.0.0.1", "litertjs": litertjs}
    with pytest.raises(ValueError, match=r"codes: 'image' is INT8: .*metamix-export --io=float32"):
        measure("web", {"codes": mt.convert(resnet[0], io="int8")}, **options)
    with pytest.raises(ValueError, match=r"any: input 'image': expected a batch of one.*\[-1, 4"):
        measure("web", {"any": stranger(None)}, **options)
    with pytest.raises(ValueError, match=r"eight: input 'image': expected a batch of one.*\[8, 4"):
        measure("web", {"eight": stranger(8)}, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"builds": ("relaxed", "fast")}, "--builds: expected some of relaxed, .* 'relaxed,fast'"),
        ({"builds": ()}, "--builds: expected some of"),
        ({"runs": 0}, "runs: expected at least 1, found 0"),
        ({"threads": 0}, "threads: expected at least 1"),
        ({"browser": "chromium", "host": "127.0.0.1"}, "--browser: expected no --host beside it"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        web.Options(**options)


@pytest.mark.parametrize(("host", "port"), [("203.0.113.1", 0), ("127.0.0.1", 99999)])
def test_an_address_of_another_machine_is_named(host, port):
    with pytest.raises(OSError, match=f"--host={host}, --port={port}: no address here"):
        PageServer({}, "report", host, port)


def test_a_page_holds_what_the_file_declares(resnet, litertjs):
    bits = {"a": resnet[3], "b": resnet[3]}
    flat = mt.convert(resnet[0], operating_points=bits, golden=2)
    files = web_page.web_signatures("model", flat)
    content = page_content(files, litertjs, Plan(runs=7))
    plan = json.loads(content["plan.json"])
    assert (plan["litertjs"], plan["runs"], plan["report"]) == (LITERTJS, 7, None)
    assert [(f["name"], f["signature"]) for f in plan["files"]] == [
        ("model:a", "a"),
        ("model:b", "b"),
    ]
    assert {f["model"] for f in plan["files"]} == {"0.tflite"} and content["0.tflite"] == flat
    golden = golden_of(mt.verify(flat, bits)["b"])
    (output,) = plan["files"][1]["golden"]
    np.testing.assert_array_equal(output["codes"], golden.expected[0])
    assert tuple(output["grid"]) == golden.grids[0] and output["stride"] == 1
    images = np.frombuffer(content["1.inputs"], np.float32)
    held = np.concatenate([image[0].ravel() for image in golden.images])
    np.testing.assert_array_equal(images[: held.size], held)
    assert images.size == held.size * 3 // 2  # and one that it is timed with


def verify(*arguments):
    return verify_main(parse_flags([*map(str, arguments)]))


def test_metamix_verify_writes_a_page(resnet, litertjs, tmp_path, monkeypatch, capsys):
    path, page = tmp_path / "model.tflite", tmp_path / "page"
    path.write_bytes(resnet[2])
    monkeypatch.chdir(tmp_path)
    assert verify(path, "--kernels=xnnpack", "--page=page") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("wrote page: python -m http.server")
    assert json.loads((page / "plan.json").read_text())["files"][0]["name"] == "model.tflite"
    assert (page / "0.tflite").read_bytes() == resnet[2]
    assert (page / "replay.js").is_file() and (page / "index.html").is_file()
    script = "core/wasm/litert_wasm_threaded_internal.js"
    assert (page / "litertjs" / script).read_text() == script
    with pytest.raises(FileExistsError, match="--page: expected a new or empty folder, found page"):
        verify(path, "--page=page")
    with pytest.raises(ValueError, match="--litertjs: expected --page=FOLDER beside it"):
        verify(path, f"--litertjs={litertjs}")
    with pytest.raises(FileNotFoundError, match=INSTALL):
        verify(path, "--page=other", f"--litertjs={tmp_path}")
    path.write_bytes(mt.convert(resnet[0], io="int8"))
    with pytest.raises(ValueError, match=rf"{path}: 'image' is INT8: "):
        verify(path, "--page=other")
    assert not Path("other").exists()


# --- LiteRT.js in Chromium


def two_ends():
    left = keras.Input((8, 8, 3), name="left")
    right = keras.Input((4, 4, 2), name="a_right", dtype="uint8")
    x = layers.Conv2D(6, 3, activation="relu", name="conv")(left)
    y = layers.Conv2D(6, 3, activation="relu", name="conv2")(layers.Rescaling(1 / 255)(right))
    x, y = (layers.GlobalAveragePooling2D()(z) for z in (x, y))
    z = layers.Add(name="sum")([x, y])
    return keras.Model(
        {"left": left, "a_right": right},
        {"z": layers.Dense(5, name="z")(z), "box": layers.Dense(4, name="box")(z)},
    )


@pytest.mark.slow
@pytest.mark.long
def test_chromium_gives_the_trained_integers(
    resnet, remake, stranger, litertjs_package, monkeypatch
):
    import keras_metamix as kmm

    keras.utils.set_random_seed(0)
    several = kmm.QuantizedModel.from_float(two_ends(), 8, 4)
    rng = np.random.default_rng(0)
    data = {
        "left": rng.normal(size=(8, 8, 8, 3)).astype("f"),
        "a_right": rng.integers(0, 256, (8, 4, 4, 2)).astype("uint8"),
    }
    kmm.calibrate(several, data)
    points = mt.convert(resnet[0], operating_points={"a": resnet[3], "b": resnet[3]})
    files = {
        "stock": stranger(1),
        "fast": resnet[2],
        "int8": mt.convert(resnet[0], "web"),
        "several": mt.convert(several),
        "point": only_signature(points, "b"),
        "other": edited(remake, resnet[2], three_off),
    }
    pages, rows_of = [], web._rows

    def kept(files, builds):
        pages.extend(builds)
        return rows_of(files, builds)

    monkeypatch.setattr(web, "_rows", kept)
    options = {"litertjs": litertjs_package, "runs": 3, "warmup": 1, "timeout": 60}
    report = measure("web", files, **options)
    assert len(report.rows) == 3 * len(files)
    for row in report.rows:
        values = {"stock": None, "several": 4 * 9}.get(row["file"], 20)
        differing = {"stock": None, "other": 3}.get(row["file"], 0)
        assert (row["values"], row["differing"]) == (values, differing), row
        assert 0 < row["low_us"] <= row["median_us"] <= row["high_us"]
    # The page counts as `compare` does.
    for build in pages:
        for row in build["rows"][1:]:
            (found,) = [
                r for r in report.rows if (r["file"], r["build"]) == (row["name"], build["build"])
            ]
            counted = row["values"], row["differing"], row["largest"]
            assert counted == (found["values"], found["differing"], found["max_steps"])


@pytest.mark.slow
@pytest.mark.long
def test_a_written_page_in_chromium(resnet, litertjs_package, tmp_path):
    # As any web server gives it out: without the headers that threads need.
    flat = mt.convert(resnet[0], operating_points={"a": resnet[3], "b": resnet[3]})
    (tmp_path / "model.tflite").write_bytes(flat)
    page = tmp_path / "page"
    verify(tmp_path / "model.tflite", f"--page={page}", f"--litertjs={litertjs_package}")
    content = {str(p.relative_to(page)): p for p in page.rglob("*") if p.is_file()}
    plan = json.loads((page / "plan.json").read_text()) | {"report": "report", "runs": 2}
    content["plan.json"] = json.dumps(plan).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("metamix_tflite.devices.web_server._ISOLATION", {})
        found = web.reported(content, web.find_browser(None), web.Options(timeout=60), 1)
    assert found["isolated"] is False
    relaxed, compat, threads = found["builds"]
    for build in (relaxed, compat):
        assert [(row["name"], row["values"], row["differing"]) for row in build["rows"]] == [
            ("model.tflite:a", 20, 0),
            ("model.tflite:b", 20, 0),
        ]
    assert "Cross-Origin-Embedder-Policy: require-corp" in threads["error"]
    assert "file" not in threads


@pytest.mark.slow
@pytest.mark.long
def test_litertjs_names_what_it_refuses(resnet, litertjs_package):
    broken = web_file(resnet[2])
    broken = dataclasses.replace(broken, flat=resnet[2][:-4000])
    options = web.Options(builds=("relaxed",), timeout=60, runs=1)
    content = page_content({"cut": broken}, litertjs_package, options.plan())
    found = web.reported(content, web.find_browser(None), options, 1)
    with pytest.raises(OSError, match=r"cut: LiteRT.js \(relaxed\) fails on it: ."):
        web._rows({"cut": broken}, found["builds"])
