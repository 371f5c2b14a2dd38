"""Step sizes from data, and batch-norm statistics of a quantized network."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_metamix.batches import (
    count_images,
    image_batches,
    informative,
    is_arrays,
    is_data_set,
    merged,
    readable,
)
from keras_metamix.checks import require_whole, shown
from keras_metamix.keras_internals import layers_inside
from keras_metamix.layers.mac import QuantizedMac
from keras_metamix.layers.mode import QuantizationMode, current_mode, quantization_mode
from keras_metamix.layers.parts import batch_norms
from keras_metamix.layers.weight_quantizer import RULES, Rule
from keras_metamix.network_model import require_quantized_model
from keras_metamix.step_observer import StepObserver

ENOUGH = 32  # images that set step sizes where nobody says how many
SEARCHED = 1000  # batches that are looked through for one that is not of one colour
_MORE = 8  # passes beyond, for tensors that were 0 everywhere
_BATCHES = 16  # of a data set given to `calibrate`
_EAGER = 4  # batches of statistics that take less time than to trace a function for more


def calibrate(
    model: Any,
    images: Any,
    rule: Rule | None = None,
    batch_size: int | None = None,
    batches: int | None = None,
    overwrite: bool = False,
) -> None:
    r"""Sets every step size of a quantized model from data: the start of training, or PTQ alone.

    The rules "lsq" and "mse", for values $v$ and the highest level $q_{max}$ of a bit-width:

    $$s_{lsq} = \frac{2 \, \mathrm{mean}(|v|)}{\sqrt{q_{max}}}, \qquad s_{mse} = \mathrm{argmin}_{s}
    \; \mathrm{mean} \left( (v - Q(v))^2 \right)$$

    Args:
      model: a QuantizedModel, MetaMixModel or BitMixerModel; it runs in float.
      images: one batch as the model takes it, or several: a list of batches, a tf.data.Dataset, a
        keras.utils.PyDataset, a generator or iterator; labels are left out. A network whose batch
        norms have never trained runs on the batch's own statistics, since it has no others. Batches
        of one colour are passed over, as long as there are others.
      rule: "lsq", a start of training: all weights and the searched candidates of activations by
        the first formula, the other activations by the second. "mse": all by the second, which a
        model that is not trained afterwards wants. Default: "mse" for a QuantizedModel, "lsq" for
        the other two, which train at several bit-widths; `fit` calibrates by "lsq". Weight steps
        that are set anew later, by `set_bits` or before weight training, follow it too.
      batch_size: splits arrays into batches; default: they are one.
      batches: at most so many are read; default 16 of a data set, and all of arrays and lists.
      overwrite: whether to set steps of a model anew whose steps were trained.

    Raises:
      TypeError: another model, or images that are no arrays of numbers.
      ValueError: another rule; images of another shape, or none; NaN or Inf in them or in a
        layer's values, names it; the steps were trained, and `overwrite` is False.
    """
    if rule is not None and rule not in RULES:
        raise ValueError(f"rule: expected one of {list(RULES)}, found {rule!r}.")
    require_quantized_model("calibrate", model)
    if model.steps_trained and not overwrite:
        raise ValueError(
            f"calibrate: the step sizes of {model.name!r} were trained: convert it, or fit goes on "
            "from them, with nothing to calibrate. To discard them, call calibrate with "
            "overwrite=True."
        )
    read = _calibration_batches(images, model.network, batch_size, batches)
    calibrate_batches(model, informative(read), rule or model.calibration_rule)


def calibrate_batches(
    model: Any, batches: Iterable[Any], rule: Rule, enough: int | None = None
) -> None:
    """Sets every step size of a quantized model from batches of inputs.

    Args:
      model: as `calibrate` takes it.
      batches: what it runs on.
      rule: "lsq" or "mse", see `calibrate`.
      enough: how many images set the steps; later ones are read only for tensors that were 0
        everywhere so far, and few of them. None: all.

    Raises:
      ValueError: see `calibrate`.
    """
    observer = StepObserver(rule)
    mode = QuantizationMode("observe", weights="off", streams=False, statistics="frozen")
    training = not has_statistics(model.network)
    checked = _checked(batches, model.network, "calibration images")
    _observe(observer, model.network, checked, mode, training, enough)
    calibrate_weights(model.network, rule)
    model.note_calibration(rule)


def has_statistics(network: keras.Model) -> bool:
    """Whether moving statistics ever left their initial 0 and 1."""
    norms = list(batch_norms(network))
    return not norms or any(
        np.any(ops.convert_to_numpy(norm.moving_mean) != 0)
        or np.any(ops.convert_to_numpy(norm.moving_variance) != 1)
        for norm in norms
    )


def calibrate_streams(
    network: keras.Model, batches: Iterable[Any], enough: int | None = ENOUGH
) -> None:
    """Sets the steps of the stream quantizers from an otherwise quantized network.

    Args:
      network: as its layers are to compute.
      batches: of inputs; `enough` as in `calibrate_batches`.
    """
    mode = QuantizationMode(statistics="frozen")
    checked = _checked(informative(batches), network, "training images")
    _observe(StepObserver("mse"), network, checked, mode, True, enough)


def _observe(
    observer: StepObserver,
    network: keras.Model,
    batches: Iterable[Any],
    mode: QuantizationMode,
    training: bool,
    enough: int | None,
) -> None:
    """Runs a network until its quantizers have seen `enough` images, then sets their steps."""
    images = more = 0
    for batch in merged(batches, ENOUGH):
        observer.begin(complete=enough is not None and images >= enough)
        with quantization_mode(dataclasses.replace(mode, observer=observer)):
            network(batch, training=training)
        images += count_images(batch)
        if enough is not None and images >= enough:
            more += 1
            if more > _MORE or not observer.has_dead:
                break
    if not images:
        raise ValueError(
            "Step sizes are set from images: expected at least one batch, found none. Data that "
            "were read before may have none left: make the generator or data set anew."
        )
    observer.finish()


def _calibration_batches(
    images: Any, network: keras.Model, batch_size: int | None, count: int | None
) -> Iterator[Any]:
    """The batches of what `calibrate` takes as images.

    A list of as many arrays as the network has inputs is a batch, and any other a list of batches.
    """
    if count is not None:
        require_whole("batches", count, 1)
    several = isinstance(images, list) and images and not _is_batch(images, network)
    if several and all(is_arrays(batch) for batch in images):
        for batch in images[:count]:
            yield batch[0] if isinstance(batch, tuple) and not _is_batch(batch, network) else batch
    elif is_data_set(source := readable(images)):
        yield from image_batches(source, count or _BATCHES)
    elif batch_size is None:
        yield images
    else:
        check_shapes(images, network)
        yield from image_batches(images, count or sys.maxsize, batch_size)


def _is_batch(images: Any, network: keras.Model) -> bool:
    """Whether images may be one batch of a network's inputs, by their number."""
    return len(keras.tree.flatten(images)) == len(network.inputs)


def _checked(batches: Iterable[Any], network: keras.Model, what: str) -> Iterator[Any]:
    for images in batches:
        check_finite(images, what)
        check_shapes(images, network)
        yield images


def check_finite(arrays: Any, what: str) -> None:
    """Checks that arrays hold numbers that float32 can hold.

    Raises:
      TypeError: a structure of anything but arrays of real numbers.
      ValueError: NaN or Inf.
    """
    for found in keras.tree.flatten(arrays):
        array = ops.convert_to_numpy(found)
        if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
            raise TypeError(f"The {what}: expected arrays of real numbers, found {shown(found)}.")
        if array.dtype.kind in "biu":
            continue
        with np.errstate(over="ignore"):
            finite = np.isfinite(array.astype(np.float32, copy=False))
        if not np.all(finite):
            raise ValueError(
                f"The {what} hold {np.sum(~finite)} NaN or Inf of {array.size} values; expected "
                "finite ones."
            )


def check_shapes(images: Any, network: keras.Model) -> None:
    """Raises ValueError unless images are at least one, and as the network's inputs are."""
    if isinstance(images, dict):
        return  # Keras matches the names, and says so
    arrays = keras.tree.flatten(images)
    if any(getattr(array, "shape", ())[:1] == (0,) for array in arrays):
        raise ValueError("images: expected at least one, found none.")
    expected = [tuple(t.shape) for t in network.inputs]
    found = [tuple(getattr(a, "shape", ())) for a in arrays]
    if len(found) != len(expected) or not all(map(_fits, found, expected)):
        single = found == [shape[1:] for shape in expected]
        remedy = ": one image is a batch of one, image[None]" if single else ""
        raise ValueError(
            f"images: expected the shape of the model's input, {_listed(expected)}, found "
            f"{_listed(found)}{remedy}."
        )


def _fits(found: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    """Whether a batch has a shape that Keras takes: it adds or drops a last axis of size 1."""
    if not found or not found[0]:
        return False
    sizes, wanted = (s[1:-1] if s[-1:] == (1,) else s[1:] for s in (found, expected))
    return len(sizes) == len(wanted) and all(
        n is None or n == size for size, n in zip(sizes, wanted, strict=True)
    )


def _listed(shapes: list[tuple[Any, ...]]) -> str:
    return shown(shapes[0] if len(shapes) == 1 else shapes)


def calibrate_weights(network: keras.Model, rule: Rule) -> None:
    """Sets the weight steps of every MAC layer from its present kernel."""
    for layer in network.layers:
        if isinstance(layer, QuantizedMac):
            kernel: Any = layer.kernel
            layer.weight_quantizer.initialize_steps(kernel, rule)


def replace_statistics(network: keras.Model, batches: Iterable[Any]) -> int:
    """Replaces batch norm's moving statistics by the mean over `batches`, in the network's mode.

    Args:
      network: quantized, or any other Keras model.
      batches: of inputs.

    Returns:
      How many images were read.
    """
    kind = keras.layers.BatchNormalization
    norms: Any = [layer for layer in layers_inside(network) if isinstance(layer, kind)]
    momenta = [norm.momentum for norm in norms]
    momentum, compiled = _training_pass(network, norms)
    read = 0
    try:
        for norm in norms:  # past Keras, which would save the variable with the layer from then on
            object.__setattr__(norm, "momentum", momentum)
        for count, images in enumerate(batches, start=1):
            momentum.assign((count - 1) / count)
            if count <= _EAGER:
                network(images, training=True)
            else:
                compiled(images)
            read += count_images(images)
    finally:
        for norm, own in zip(norms, momenta, strict=True):
            norm.momentum = own
    return read


class _TrainingPasses:
    """A network's forward passes of training, traced once for each mode.

    No dictionary in the network itself, which Keras would track and save.
    """

    def __init__(self) -> None:
        self.of: dict[Any, tuple[tf.Variable, Any]] = {}


def _training_pass(network: Any, norms: Iterable[Any]) -> tuple[tf.Variable, Any]:
    """The momentum that batch norms have in a compiled pass of the network, and that pass.

    It is kept: tracing takes longer than several batches do.
    """

    def train(images: Any) -> None:
        network(images, training=True)

    made = tf.Variable(0.0, trainable=False), tf.function(train, reduce_retracing=True)
    # What a trace depends on and no variable holds.
    state = tf.distribute.get_strategy(), current_mode(), *(norm.trainable for norm in norms)
    try:
        hash(state)
    except TypeError:  # a mode with tensors, of one step
        return made
    if not hasattr(network, "_training_passes"):
        network._training_passes = _TrainingPasses()
    return network._training_passes.of.setdefault(state, made)
