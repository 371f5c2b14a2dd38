"""Methods of a user's own model class that a wrapped model would not call."""

from __future__ import annotations

import keras

# What describes the model: `from_float` has read it already, or needs none of it.
_HARMLESS = {"build", "get_config", "from_config", "get_build_config", "build_from_config"}
_HARMLESS |= {"summary", "save", "input_spec", "count_params", "get_layer"}
# Methods that training calls, which a model may also get as an attribute.
_STEPS = ("train_step", "test_step", "predict_step", "compute_loss", "compute_metrics")


def require_no_overrides(model: keras.Model) -> None:
    """Checks that a model trains, evaluates and predicts as Keras' own classes do.

    Raises:
      ValueError: its class overrides a method of Keras'; names all of them, and where they may
        be instead.
    """
    names: set[str] = {name for name in _STEPS if name in vars(model)}
    for cls in type(model).__mro__:
        if cls.__module__.startswith("keras."):
            break
        names |= {n for n in vars(cls) if not n.startswith("__") and hasattr(keras.Model, n)}
    if names := names - _HARMLESS:
        found = ", ".join(sorted(names))
        plain = "keras.Model(model.input, model.output)"
        if isinstance(model, keras.Sequential):
            plain = "keras.Model(model.inputs[0], model.outputs[0])"
        raise ValueError(
            f"Model {model.name!r} ({type(model).__name__}) has its own {found}, which the "
            f"quantized model would not call. Give {plain}, which has the same layers and weights, "
            f"to from_float; where training needs {found}, define it in a subclass of the "
            "quantized model's class, and call the from_float of that."
        )
