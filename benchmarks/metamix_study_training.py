"""What benchmarks/metamix_study.py trains of a network and a seed."""

from __future__ import annotations

import functools
import runpy
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
from joint_search import JointSearchModel
from metamix_study_settings import NETWORKS, SETTINGS

import keras_metamix as kmm
from keras_metamix.batches import image_batches
from keras_metamix.calibration import calibrate
from keras_metamix.launch.config import complete
from keras_metamix.launch.datasets import load_data
from keras_metamix.launch.optimization import compile_model, cosine
from keras_metamix.metamix.schedule import SelectionThenCosine

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.py"  # data and optimizer
BATCH, VALIDATION = 128, 5000
FLOAT_PASSES, FLOAT_RATE = 6, 4e-3
SELECTION_RATE, RATE = 1e-3, 1e-3


class Training:
    """Trains a network from a seed: in float, in a search, and at given bits.

    Args:
      network: of NETWORKS.
      seed: of weights, images and calibration.
      data: the name of the images.
      passes: over the images, of weight training.
      work: where trained networks are kept.

    Attributes:
      data: the images.
      half: steps of half a selection.
      training: steps of weight training.
      searching: CPU time of the searches that were run, in seconds.
    """

    def __init__(self, network: str, seed: int, data: str, passes: float, work: Path) -> None:
        self.network, self.seed = network, seed
        self.config = _config(data, seed)
        self.data = load_data(self.config)
        self.steps = self.data.steps  # of a pass
        self.half = self.steps // 2
        self.training = round(passes * self.steps)
        self.searching = 0.0
        self.folder = work / f"{network}-{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)

    @functools.cached_property
    def float_model(self) -> keras.Model:
        """The trained float network."""
        keras.utils.set_random_seed(self.seed)
        model, file = NETWORKS[self.network](), self.folder / "float.weights.h5"
        if file.is_file():
            model.load_weights(file)
            compile_model(model, self.config, RATE)
            return model
        fast = kmm.fast_float(model)
        compile_model(fast, self.config, cosine(FLOAT_RATE, FLOAT_PASSES * self.steps))
        self._fit(fast, FLOAT_PASSES * self.steps)
        model.set_weights(fast.get_weights())
        compile_model(model, self.config, RATE)
        model.save_weights(file)
        return model

    def float_on(self) -> dict[str, Any]:
        """The accuracy of the float network, trained for as many steps as the others."""
        model = keras.models.clone_model(self.float_model)
        model.set_weights(self.float_model.get_weights())
        fast = kmm.fast_float(model)
        compile_model(fast, self.config, _trained_on(self.half, self.training))
        self._fit(fast, 2 * self.half + self.training)
        return self.tested(fast)

    def selected(self, name: str, kind: str) -> kmm.MetaMixModel:
        """The model at the end of its search, with the bits not yet chosen."""
        file = self.folder / f"{name}-{kind}.npz"
        model = self.ready(name, kind)
        if not file.is_file():
            began = time.process_time()
            self.begin(model)
            callback = kmm.MetaMixCallback(
                SETTINGS[name].given(model),
                meta_epochs=int(kind != "joint"),
                meta="split" if kind == "split" else "whole",
                search_epochs=1 if kind != "joint" else 2,
                statistics_batches=0,
                statistics_data=self.data.train,
                verbose=0,
            )
            keep = _KeepSearched()
            self._fit(model, self.half, 2, keep, callback)
            np.savez(file, *keep.values)
            self.searching += time.process_time() - began
        with np.load(file) as values:
            restore(model, [values[key] for key in values.files])
        return model

    def ready(self, name: str, kind: str) -> kmm.MetaMixModel:
        """The compiled model of a setting, with any weights; see `_ready`."""
        return _ready(self.network, name, kind, self.config.data.name, self.half, self.training)

    def begin(self, model: kmm.MetaMixModel) -> None:
        """Readies a model for training from the float network, as if it had just been made."""
        keras.utils.set_random_seed(self.seed)
        fresh = type(model).from_float(self.float_model, model.space)
        for images in image_batches(self.data.train, 1):
            calibrate(fresh, images)
        restore(model, [v.numpy() for v in fresh.weights])

    def at_bits(self, model: kmm.MetaMixModel, bits: Any, steps: int) -> dict[str, float]:
        """Trains weights at given bits from a model's own; accuracy and loss on test images."""
        model.set_bits(bits)
        kmm.prepare_weight_training(model, self.data.train, 32)
        self._fit(model, steps)
        kmm.reestimate_batch_norm(model, self.data.train)
        return self.tested(model)

    def images(self, count: int) -> tuple[Any, Any]:
        """The first training images and their labels."""
        return next(iter(self.data.train.unbatch().batch(count)))

    def tested(self, model: Any) -> dict[str, float]:
        """Accuracy and loss on the test images."""
        found = model.evaluate(self.data.test, verbose=0, return_dict=True)
        return {key: float(found[key]) for key in ("accuracy", "loss")}

    def _fit(self, model: Any, steps: int, epochs: int = 1, *callbacks: Any) -> None:
        keras.utils.set_random_seed(self.seed)
        model.fit(
            self.data.train,
            epochs=epochs,
            steps_per_epoch=steps,
            shuffle=False,  # the data set shuffles
            verbose=0,
            callbacks=[*callbacks],
        )


class _KeepSearched(keras.callbacks.Callback):
    """Keeps a model's variables at the end of each epoch: before the bits are chosen."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.values = [v.numpy() for v in self.model.weights]


@functools.cache
def _ready(
    network: str, name: str, kind: str, data: str, half: int, training: int
) -> kmm.MetaMixModel:
    """A compiled model, made once for all seeds: to trace its steps takes longer than an arm's fit.

    Args:
      network, name: of NETWORKS and SETTINGS.
      kind: "metamix", "split", "moving", "joint": of a selection; "weights": of weight training;
        "from float": of as many steps as both.
      data: the name of the images.
      half, training: steps of half a selection, and of weight training.
    """
    of = JointSearchModel if kind in ("moving", "joint") else kmm.MetaMixModel
    model = of.from_float(NETWORKS[network](), SETTINGS[name].space)
    rates = {"weights": cosine(RATE, training), "from float": _trained_on(half, training)}
    if of is JointSearchModel:
        model.kind = kind
    compile_model(model, _config(data, 0), rates.get(kind, SELECTION_RATE))
    return model


def restore(model: kmm.MetaMixModel, values: list[np.ndarray]) -> None:
    """Gives a model its weights, and its optimizers none of their past."""
    for variable, value in zip(model.weights, values, strict=True):
        variable.assign(value)
    for optimizer, _ in model.optimizers():
        for variable in optimizer.variables:
            if variable.path.endswith("learning_rate"):
                continue
            variable.assign(np.zeros(variable.shape, variable.dtype))


def _config(data: str, seed: int) -> Any:
    config = runpy.run_path(str(QUICKSTART))["get_config"]()
    config.seed = seed
    config.data.name, config.data.augment, config.data.validation = data, False, VALIDATION
    config.train.batch_size = BATCH
    return complete(config)


def _trained_on(half: int, training: int) -> Any:
    """The rates of a network that is trained on for as long as selection and weight training."""
    return SelectionThenCosine(SELECTION_RATE, 2 * half, RATE, 2 * half + training, 0.01)
