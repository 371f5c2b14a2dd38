"""Why a quantized model is less accurate than in float: measured layer by layer, on data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras

from keras_metamix.batches import first_batches, is_data_set, readable
from keras_metamix.checks import found_model, require_whole, shown
from keras_metamix.doctor.advice import Finding, of_channels, of_sensitivity, of_tensor
from keras_metamix.doctor.diagnosis import Diagnosis, LayerDiagnosis
from keras_metamix.doctor.examination import Examination
from keras_metamix.graph.layer_costs import layer_costs
from keras_metamix.network_model import require_quantized_model

_BATCH = 16  # images that pass at a time: all tensors between layers are held


def diagnose(
    model: Any,
    data: Any,
    float_model: keras.Model | None = None,
    images: int = 128,
    sensitivity: Mapping[str, float] | None = None,
) -> Diagnosis:
    """Measures what quantization costs each layer of a model, and says what to do.

    Nothing is trained, and nothing in the model changes.

    Args:
      model: a QuantizedModel, MetaMixModel or BitMixerModel with step sizes, at the bits that it
        has.
      data: images as the model takes them, a pair (images, labels), or a data set of such batches.
        Labels of classes, as integers or one-hot, give accuracies. Training images do.
      float_model: the float model that it was made of, to compare accuracies with.
      images: at most so many are read.
      sensitivity: by name of MAC layers, what lowering a layer's bits costs, in any unit; the
        larger, the more. Then bits are compared with it.

    Raises:
      TypeError: another model, or data that are no arrays.
      ValueError: the model has no step sizes yet, or does not compute with the values that a file
        would hold; a float model without one of its MAC layers; images of another shape, or none,
        or NaN or Inf in them; a sensitivity of a layer that the model does not have.
    """
    require_quantized_model("diagnose", model)
    if float_model is not None and not isinstance(float_model, keras.Model):
        raise TypeError(f"float_model: expected a Keras model, found {found_model(float_model)}.")
    if float_model is not None:
        _require_origin(model, float_model)
    require_whole("images", images, 1)
    model.require_quantized()
    known = {layer.name for layer in model.mac_layers}
    sensitivity = dict(sensitivity or {})
    if unknown := [name for name in sensitivity if name not in known]:
        raise ValueError(
            f"sensitivity: expected names of MAC layers, of {shown(sorted(known))}, found "
            f"{shown(unknown)}."
        )
    examined = Examination(model, float_model)
    for batch, labels in _batches(data, images):
        examined.add(batch, labels)
    if not examined.images:
        raise ValueError("data: expected at least one image, found none.")
    layers = examined.layers(sensitivity)
    findings = _findings(layers, model, sensitivity)
    return Diagnosis(
        model.name,
        examined.images,
        layers,
        findings,
        examined.outputs.sqnr,
        examined.agreement,
        examined.accuracy(),
        tuple(examined.notes()),
    )


def _require_origin(model: Any, float_model: keras.Model) -> None:
    """Raises ValueError unless a float model has each MAC layer of a quantized one."""
    theirs = {layer.name: layer.weights for layer in layer_costs(float_model)}
    for layer in layer_costs(model):
        if theirs.get(layer.name) != layer.weights:
            other = theirs.get(layer.name)
            found = "no such layer" if other is None else f"one of {other:,} weights"
            raise ValueError(
                f"float_model: expected the model that {model.name!r} was made of, with a layer "
                f"{layer.name!r} of {layer.weights:,} weights, found {found} in "
                f"{float_model.name!r}."
            )


def _findings(
    layers: tuple[LayerDiagnosis, ...], model: Any, sensitivity: Mapping[str, float]
) -> tuple[Finding, ...]:
    """What is wrong, the layers in their order, and of each the largest loss first."""
    bits = {
        layer.name: (float(layer.input.bits * layer.weights.bits), layer.sensitivity)
        for layer in layers
        if layer.weights is not None
        and layer.name in sensitivity
        and not model.network.get_layer(layer.name).edge
    }
    of_bits = list(of_sensitivity(bits))
    found: list[Finding] = []
    for layer in layers:
        name, trained = layer.name, model.steps_trained
        mine: list[Finding] = []
        if not layer.shared:
            what = "input" if layer.weights else "values"
            mine += of_tensor(name, what, layer.input, trained)
        if layer.weights:
            mine += of_tensor(name, "weights", layer.weights, trained)
        mine.sort(key=lambda finding: -finding.lost)
        mine += of_channels(name, layer.channels, layer.dead, layer.dead_in_float)
        found += [*mine, *(finding for finding in of_bits if finding.layer == name)]
    return tuple(found)


def _batches(data: Any, images: int) -> Iterator[tuple[Any, Any]]:
    """Small batches of inputs and labels, None without, of so many images altogether."""
    source = readable(data)
    if is_data_set(source):
        found: Any = first_batches(source, images)  # one has an image at least
        pairs = (keras.utils.unpack_x_y_sample_weight(batch)[:2] for batch in found)
    else:
        pairs = iter([data if isinstance(data, tuple) and len(data) == 2 else (data, None)])
    for x, y in pairs:
        sizes = {len(array) for array in keras.tree.flatten(x) if getattr(array, "shape", ())}
        if len(sizes) != 1:
            raise TypeError(
                "data: expected images, a pair (images, labels) or a data set of these, found "
                f"{shown(data)}."
            )
        count = min(sizes.pop(), images)
        for start in range(0, count, _BATCH):
            end = min(start + _BATCH, count)
            yield _part(x, start, end), None if y is None else _part(y, start, end)
        images -= count
        if not images:
            return


def _part(arrays: Any, start: int, end: int) -> Any:
    return keras.tree.map_structure(lambda array: array[start:end], arrays)
