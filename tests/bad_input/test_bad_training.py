"""What budgets, callbacks, `compile` and the choice of operating points say of bad arguments."""

import keras
import pytest

import keras_metamix as kmm
from keras_metamix.zoo import small_cnn

NAN, INF = float("nan"), float("inf")


def begin(given, target=1e9, **arguments):
    """What fit does before its first epoch."""
    callback = kmm.MetaMixCallback(target, verbose=0, **arguments)
    callback.set_model(given.quantized)
    callback.set_params({"epochs": 3, "steps": 2})
    callback.on_train_begin()


def fit(model, given, callback, epochs=3):
    model.compile("sgd", "mse")
    model.fit(given.images, given.labels, epochs=epochs, verbose=0, callbacks=[callback])


def float_copy(given):
    return keras.models.clone_model(given.model)


def metamix(given):
    return kmm.MetaMixModel.from_float(given.model)


def choose(given, budget=1e9, **arguments):
    data = arguments.pop("data", (given.images, given.labels))
    return kmm.choose_bits(given.mixer, data, budget, verbose=0, **arguments)


def priced(given, table):
    return choose(given, kmm.Priced(table, 1e9))


def front(given, budgets):
    return kmm.pareto_front(given.mixer, (given.images, given.labels), budgets, verbose=0)


def prices(given, value):
    layers = given.mixer.mac_layers
    return {x.name: dict.fromkeys(x.input_quantizer.candidates, value) for x in layers}


LEAST = "expected at least .* BOPs .* at the dearest bits it costs"
NUMBER = "expected a finite number, above 0, found "
VALUES = [
    (NAN, ValueError, f"Bops: {NUMBER}nan"),
    (-INF, ValueError, f"Bops: {NUMBER}-inf"),
    (INF, ValueError, f"Bops: {NUMBER}inf"),
    (-1, ValueError, f"Bops: {NUMBER}-1"),
    (0, ValueError, f"Bops: {NUMBER}0"),
    (1, ValueError, rf"Bops\(1\): {LEAST}"),
    ("5e9", TypeError, "budget: expected Bops, Size, .* found '5e9'"),
    (True, TypeError, "budget: .* found True"),
    ([], ValueError, "budget: expected at least one, found none"),
    ([1e3, 1e9], ValueError, rf"Bops\(1000\): {LEAST}"),
    (["x"], TypeError, "budget: .* found 'x'"),
]
BUDGETS = (
    [
        (f"{name} {value!r}", lambda g, v=value, call=call: call(g, v), error, message)
        for name, call in [("budget", begin), ("choose_bits", choose)]
        for value, error, message in VALUES
    ]
    + [
        (f"{name}", lambda g, m=make: begin(g, m()), error, message)
        for name, make, error, message in [
            (
                "none",
                lambda: None,
                ValueError,
                "MetaMixCallback: expected a budget, such as .*; found none",
            ),
            (
                "no limit",
                kmm.Bops,
                ValueError,
                "Bops: expected a limit in BOPs or share=, found nei",
            ),
            ("both", lambda: kmm.Size(9, share=0.1), ValueError, "Size: .* found both"),
            ("share", lambda: kmm.Bops(share=50), ValueError, r"Bops: share: .*\[0, 1\], found 50"),
            ("text", lambda: kmm.Size("64 elephants"), ValueError, "Size: .*'64 elephants'"),
            ("unit", lambda: kmm.Size("64"), ValueError, "Size: expected bytes, .* found '64'"),
            ("nothing", lambda: kmm.Size("0 kB"), ValueError, f"Size: {NUMBER}0"),
            (
                "small",
                lambda: kmm.Size("1 kB"),
                ValueError,
                r"Size\(1000\): expected at least .* bytes",
            ),
            ("table", lambda: kmm.Priced(3, 1.0), TypeError, "Priced: expected a table .* found 3"),
        ]
    ]
    + [
        (
            "objective without a callback",
            lambda g: g.quantized.set_objective(NAN),
            ValueError,
            f"Bops: {NUMBER}nan",
        ),
    ]
)
ARGUMENTS = [
    (
        f"{name} {value!r}",
        lambda g, name=name, v=value: begin(g, **{name: v}),
        ValueError,
        f"{name}: expected a whole number, at least {least}, found {value!r}",
    )
    for name, least, values in [
        ("meta_epochs", 0, (-1, 1.5, "1", None, True)),
        ("search_epochs", 0, (-1, 1.5, "1")),
        ("statistics_batches", 0, (-1, 1.5, "x", None)),
        ("record_every", 1, (0, -1, 1.5, None)),
    ]
    for value in values
] + [
    (
        "cost",
        lambda g: begin(g, cost_form="x"),
        ValueError,
        "cost_form: expected one of .* found 'x'",
    ),
    (
        "cost none",
        lambda g: begin(g, cost_form=None),
        ValueError,
        "cost_form: expected one of .* found None",
    ),
    *(
        (
            f"cost_strength {value!r}",
            lambda g, v=value: begin(g, cost_strength=v),
            ValueError,
            f"cost_strength: expected a finite number, at least 0, found {value!r}",
        )
        for value in (NAN, INF, -1, "x")
    ),
    *(
        (
            f"stage_epochs {value!r}",
            lambda g, v=value: kmm.BitMixerCallback(v),
            ValueError,
            "stage_epochs: expected ",
        )
        for value in ((), (1, 1), (-1, 1, 1), (0, 0, 0), (1.5, 1, 1), "111", None, 3, (True, 1, 1))
    ),
    (
        "mixer's statistics",
        lambda g: kmm.BitMixerCallback((1, 1, 1), statistics_batches=-1),
        ValueError,
        "statistics_batches: expected a whole number, at least 0, found -1",
    ),
    (
        "epochs of other stages",
        lambda g: fit(kmm.BitMixerModel.from_float(g.model), g, kmm.BitMixerCallback((1, 1, 1)), 2),
        ValueError,
        r"fit\(epochs=2\): BitMixerCallback\(stage_epochs=\(1, 1, 1\)\) needs 3",
    ),
    (
        "float model",
        lambda g: fit(float_copy(g), g, kmm.MetaMixCallback(1e9)),
        TypeError,
        "MetaMixCallback trains a MetaMixModel .* found Functional",
    ),
    (
        "mixer's callback",
        lambda g: fit(metamix(g), g, kmm.BitMixerCallback((1, 1, 1))),
        TypeError,
        "BitMixerCallback trains a BitMixerModel .* found MetaMixModel",
    ),
    (
        "uncompiled",
        lambda g: metamix(g).fit(g.images, g.labels, verbose=0),
        ValueError,
        r"call `compile\(\)`",
    ),
    *(
        (
            f"in_place_distillation {value!r}",
            lambda g, v=value: g.mixer.compile("sgd", in_place_distillation=v),
            ValueError,
            rf"in_place_distillation: expected a number in \[0, 1\], found {value!r}",
        )
        for value in (-0.1, 1.5, NAN, "x", None)
    ),
    *(
        (
            f"distillation {value!r}",
            lambda g, v=value: metamix(g).compile("sgd", teacher=g.model, distillation=v),
            ValueError,
            rf"distillation: expected a number in \(0, 1\], found {value!r}",
        )
        for value in (0, 1.5, NAN, "x")
    ),
    *(
        (
            f"teacher {name}",
            lambda g, make=make: metamix(g).compile("sgd", teacher=make()),
            error,
            message,
        )
        for name, make, error, message in [
            ("number", lambda: 7, TypeError, "distillation: expected a Keras model .* found 7"),
            ("file", lambda: "t.keras", TypeError, "found the path 't.keras': load the file"),
            ("unbuilt", keras.Sequential, TypeError, "that knows its inputs, found Sequential"),
            (
                "of other classes",
                lambda: small_cnn((8, 8, 1), classes=3, width=4),
                ValueError,
                r"teacher 'small_cnn': expected .*\(4,\)\), found .*\(3,\)\)",
            ),
        ]
    ),
    (
        "optimizer",
        lambda g: metamix(g).compile("sgdd"),
        ValueError,
        "Could not interpret optimizer identifier: sgdd",
    ),
    (
        "search optimizer",
        lambda g: metamix(g).compile("sgd", search_optimizer="sgdd"),
        ValueError,
        "Could not interpret optimizer identifier: sgdd",
    ),
]
POINTS = [
    ("choose_bits None", lambda g: choose(g, None), TypeError, "budget: .* found None"),
    *(
        (
            f"choose_points {value!r}",
            lambda g, v=value: kmm.choose_points(g.mixer, (g.images, g.labels), v, verbose=0),
            ValueError,
            message,
        )
        for value, message in [
            ({}, "budgets: expected at least one by name, found {}"),
            ([1e9], r"budgets: .*by name, found \[1000000000.0\]"),
            (None, "budgets: .* found None"),
            ({"a": NAN}, f"Bops: {NUMBER}nan"),
        ]
    ),
    *(
        (f"pareto_front {value!r}", lambda g, v=value: front(g, v), ValueError, message)
        for value, message in [
            (0, "budgets: expected a whole number, at least 1, found 0"),
            (-1, "budgets: .* found -1"),
            (1.5, "budgets: .* found 1.5"),
            (None, "budgets: .* found None"),
            ([], "budgets: expected at least one, found none"),
            ([NAN], f"Bops: {NUMBER}nan"),
        ]
    ),
    ("no prices", lambda g: priced(g, {}), ValueError, "price of layer 'conv1' .* found none"),
    (
        "price of a layer",
        lambda g: priced(g, {"conv1": 3}),
        ValueError,
        "'conv1' .*found none",
    ),
    ("price NaN", lambda g: priced(g, prices(g, NAN)), ValueError, "price of .*found nan"),
    ("price negative", lambda g: priced(g, prices(g, -1)), ValueError, "price of .*found -1"),
    ("price text", lambda g: priced(g, prices(g, "x")), ValueError, "price of .*found 'x'"),
    ("method", lambda g: choose(g, method="x"), ValueError, "method: expected one of .* found 'x'"),
    (
        "no data",
        lambda g: choose(g, data=(g.images[:0], g.labels[:0])),
        ValueError,
        "data: expected",
    ),
    (
        "of a MetaMixModel",
        lambda g: kmm.choose_bits(g.quantized, (g.images, g.labels), 1e9),
        TypeError,
        "Expected a BitMixerModel, found MetaMixModel",
    ),
    (
        "of a float model",
        lambda g: kmm.pareto_front(g.model, (g.images, g.labels)),
        TypeError,
        "Expected a MetaMixModel or BitMixerModel, found Functional",
    ),
    (
        "plot into no folder",
        lambda g: kmm.pareto_front(
            g.mixer, (g.images, g.labels), 1, plot="no/front.png", verbose=0
        ),
        FileNotFoundError,
        "No such file or directory: 'no/",
    ),
]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [pytest.param(*case[1:], id=case[0]) for case in [*BUDGETS, *ARGUMENTS, *POINTS]],
)
def test_a_bad_argument_is_refused(call, error, message, given, refuses):
    before = given.mixer.bit_assignment
    refuses(lambda: call(given), error, message)
    assert given.mixer.bit_assignment == before
