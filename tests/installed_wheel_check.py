"""The installed wheel, outside the checkout: its data, one exact conversion, one report page.

python installed_wheel_check.py      in an environment that holds the wheel and nothing else
"""

import tempfile
from pathlib import Path

import numpy as np

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix import data, zoo
from keras_metamix.report import page
from metamix_tflite.verification import web_page


def main() -> None:
    (images, _), (test_images, _) = data.load_extract()
    images, test_images = (np.asarray(data.normalize(x[:256])) for x in (images, test_images))
    float_model = zoo.small_mobilenet(width=4)
    model = kmm.MetaMixModel.from_float(float_model)
    kmm.calibrate(model, images)
    bits = kmm.uniform_assignment(float_model, 4, 4)
    model.set_bits(bits)
    with tempfile.TemporaryDirectory() as folder:
        bits.save(Path(folder) / "bits.json")
        if kmm.BitAssignment.load(Path(folder) / "bits.json") != bits:
            raise SystemExit("bits.json changed the assignment")
    flat = mt.convert(model)
    mt.verify(flat, bits)
    report = mt.parity(flat, model, test_images)
    if report.differing or not report.delegated:
        raise SystemExit(f"the file is not exact: {report}")
    (replayed,) = mt.replay(flat).values()
    if replayed.differing or not replayed.values:
        raise SystemExit(f"the file does not give its golden outputs: {replayed}")
    if not Path(page.__file__).with_name("page.html.jinja").is_file():
        raise SystemExit("the report's template is not in the wheel")
    for name in ("index.html", "replay.js"):
        if not (Path(web_page.__file__).with_name("page") / name).is_file():
            raise SystemExit(f"{name} of the page for browsers is not in the wheel")
    print(f"installed wheel: {report}")


if __name__ == "__main__":
    main()
