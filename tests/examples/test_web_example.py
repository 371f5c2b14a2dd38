"""`examples/web`: what its page feeds the network with, and what comes out, in a real Chromium."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix import data, zoo
from metamix_tflite.devices import web

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "web"

PAGE = """<!doctype html>
<script type="importmap">
{"imports": {"@litertjs/core": "./litertjs/core/dist/index.js",
  "@litertjs/wasm-utils": "./litertjs/wasm-utils/dist/index.js"}}
</script>
<script type="module">
async function run() {
  const {Classifier, garment, normalized, softmax} = await import('./classifier.js');
  const wasm = new URL('./litertjs/core/wasm/', location).href;
  const network = await Classifier.load('./model.tflite', wasm);
  const pixels = new Uint8Array(await (await fetch('./pixels')).arrayBuffer());
  const found = {inputs: [], logits: [], softmax: softmax([1, 2, 4])};
  for (let start = 0; start < pixels.length; start += 784) {
    const image = pixels.slice(start, start + 784);
    found.inputs.push([...normalized(image)]);
    found.logits.push([...await network.logits(image)]);
  }
  const picture = new ImageData(100, 100);  // dark, 20 x 40, left above on a light ground
  for (let at = 0; at < 10000; at++) {
    const x = at % 100, y = (at - x) / 100, inside = x >= 10 && x < 30 && y >= 5 && y < 45;
    const value = inside ? 20 : 220;
    picture.data.set([value, value, value, 255], 4 * at);
  }
  found.garment = [...garment(picture)];
  found.nothing = garment(new ImageData(100, 100));
  return found;
}
const body = JSON.stringify(await run().catch((error) => ({error: String(error)})));
await fetch('./report', {method: 'POST', body});
</script>
"""


@pytest.mark.slow
@pytest.mark.long
def test_the_page_computes_what_was_trained(litertjs_package):
    keras.utils.set_random_seed(0)
    (images, _), (shown, _) = data.load_extract()
    model = kmm.QuantizedModel.from_float(zoo.small_cnn(width=8), 8, 4)
    kmm.calibrate(model, np.asarray(data.normalize(images[:64])))
    flat = mt.convert(model, "web")
    content = {
        "index.html": PAGE.encode(),
        "classifier.js": EXAMPLE / "classifier.js",
        "model.tflite": flat,
        "pixels": shown[:8].tobytes(),
    }
    for part in ("core/dist", "core/wasm", "wasm-utils/dist"):
        for path in (litertjs_package / part).iterdir():
            content[f"litertjs/{part}/{path.name}"] = path
    found = web.reported(content, web.find_browser(None), web.Options(timeout=60), 1)
    assert "error" not in found, found
    inputs = np.asarray(data.normalize(shown[:8]))
    np.testing.assert_array_equal(np.float32(found["inputs"]).reshape(inputs.shape), inputs)
    np.testing.assert_array_equal(np.float32(found["logits"]), mt.Runner(flat).predict(inputs))
    powers = np.exp([1, 2, 4])
    np.testing.assert_allclose(found["softmax"], powers / powers.sum())
    expected = np.zeros((28, 28))
    expected[:, 7:21] = 200  # of the ground's 220 and its own 20
    np.testing.assert_allclose(np.reshape(found["garment"], (28, 28)), expected, atol=1)
    assert found["nothing"] is None


def test_the_page_s_files_are_whole():
    page, app = ((EXAMPLE / name).read_text() for name in ("index.html", "app.js"))
    assert json.loads(page.partition('type="importmap">')[2].partition("</script>")[0])
    for name in ("problem", "picture", "samples", "clear", "camera", "seen", "name", "time"):
        assert f'id="{name}"' in page and f"place('{name}')" in app
