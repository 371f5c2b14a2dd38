"""`metamix-doctor`: a float model, a quantized one, a run, and what is wrong with flags."""

import keras
import numpy as np
import pytest

import keras_metamix as kmm
from keras_metamix.launch.doctor import main, parse_flags
from keras_metamix.zoo import small_cnn

IMAGES = np.random.default_rng(0).normal(size=(20, 12, 12, 1)).astype("f")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A float model, the same quantized, images, and a model of a layer that is refused."""
    folder = tmp_path_factory.mktemp("models")
    model = small_cnn((12, 12, 1), 4, 2)
    model.save(folder / "float.keras")
    quantized = kmm.QuantizedModel.from_float(model)
    kmm.calibrate(quantized, IMAGES)
    quantized.save(folder / "model.keras")
    labels = np.asarray(model(IMAGES)).argmax(-1)
    np.savez(folder / "data.npz", images=IMAGES, labels=labels)
    np.savez(folder / "two.npz", images=IMAGES, others=IMAGES)
    np.save(folder / "images.npy", IMAGES)
    image = keras.Input((12, 12, 1), name="image")
    x = keras.layers.GroupNormalization(1, name="group")(keras.layers.Conv2D(2, 3)(image))
    x = keras.layers.Dense(4)(keras.layers.Flatten()(x))
    keras.Model(image, x).save(folder / "refused.keras")
    return folder


def doctor(*arguments):
    main(parse_flags(["metamix-doctor", *map(str, arguments)]))


def test_a_float_model_that_can_be_quantized_whole(folder, tmp_path, capsys):
    doctor(folder / "float.keras", f"--html={tmp_path / 'page.html'}")
    told = capsys.readouterr().out
    assert "can be quantized whole" in told and "bits A/W" in told
    assert "Checkup of" in (tmp_path / "page.html").read_text()


def test_a_refused_model_gives_exit_code_1_and_the_page(folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        doctor(folder / "refused.keras", f"--html={tmp_path / 'page.html'}")
    assert stopped.value.code == 1
    told = capsys.readouterr().out
    assert "Refused, 1 in all" in told and "'group' (GroupNormalization)" in told
    assert (tmp_path / "page.html").is_file()


def test_a_quantized_model_on_data(folder, tmp_path, capsys):
    page = tmp_path / "page.html"
    reference = folder / "float.keras"
    doctor(
        folder / "model.keras",
        f"--data={folder / 'data.npz'}",
        f"--float_model={reference}",
        f"--html={page}",
    )
    told = capsys.readouterr().out
    assert "Accuracy on 20 images" in told and "float 100.0 %" in told
    assert "Diagnosis of" in page.read_text()
    doctor(folder / "model.keras", f"--data={folder / 'images.npy'}", "--images=7")
    assert "Accuracy" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("model.keras",), "--data: .*model.keras is a quantized model"),
        (("model.keras", "--float_layers=a", "--data=x.npz"), "--float_layers: .* is a quantized"),
        (("float.keras", "--data=x.npz"), "--data: .*float.keras is a float model"),
        (("model.keras", "--data={}/two.npz"), r"--data=.*two.npz: expected a .npz with"),
        (("model.keras", "--data={}/float.keras"), r"--data=.*: expected a .npz with"),
        (("model.keras", "--data={}/data.npz", "--images=0"), "images: expected a whole number"),
        (("float.keras", "--html=page.txt"), "--html: expected a name that ends in .html"),
    ],
)
def test_wrong_flags_are_named(folder, arguments, told):
    model, *flags = (argument.format(folder) for argument in arguments)
    with pytest.raises(ValueError, match=told):
        doctor(folder / model, *flags)
