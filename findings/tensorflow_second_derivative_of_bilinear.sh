#!/usr/bin/env bash
# A second derivative through a bilinear resize is silently wrong: the resize's gradient counts as a constant.
#
# Of w -> sum(resize(w * x)^3) + w^3 both derivatives are known in closed form. TensorFlow's first is right for
# every method. Its second one through "nearest" and "bicubic" raises LookupError, since the gradient operator
# has no gradient; through "bilinear" it is 6 in place of 420501: what lies before the resize is left out, and
# nothing is said. Hessian traces, curvature and gradient penalties of a network with such a layer
# (UpSampling2D, a U-Net's decoder) are those of another function.
#
# Seen with tensorflow 2.21.0, 2026-11-29.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3.11}" -m venv venv
venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check tensorflow==2.21.0

cat >seen <<'SEEN'
average pooling: first derivative 1.257e+04 of 1.257e+04; second 2.515e+04 of 2.515e+04
resize, bilinear: first derivative 2.103e+05 of 2.103e+05; second 6 of 4.205e+05
resize, nearest: first derivative 2.22e+05 of 2.22e+05; second LookupError of 4.439e+05
resize, bicubic: first derivative 2.216e+05 of 2.216e+05; second LookupError of 4.432e+05
SEEN

cat >program.py <<'PY'
import numpy as np
import tensorflow as tf

x = tf.constant(np.arange(1.0, 17.0).reshape(1, 4, 4, 1), tf.float64)
w = tf.constant(1.0, tf.float64)


def resized(method):
    return lambda image: tf.cast(tf.image.resize(image, (8, 8), method=method), tf.float64)


def first(f):
    with tf.GradientTape() as tape:
        tape.watch(w)
        value = tf.reduce_sum(f(w * x) ** 3) + w**3
    return tape.gradient(value, w)


def second(f):
    with tf.GradientTape() as tape:
        tape.watch(w)
        gradient = first(f)
    return tape.gradient(gradient, w)


for name, f in {
    "average pooling": lambda image: tf.nn.avg_pool2d(image, 2, 2, "VALID"),
    "resize, bilinear": resized("bilinear"),
    "resize, nearest": resized("nearest"),
    "resize, bicubic": resized("bicubic"),
}.items():
    whole = float(tf.reduce_sum(f(x) ** 3)) + 1  # every f is linear: f(w x) = w f(x)
    try:
        found = f"{float(second(f)):.4g}"
    except LookupError:
        found = "LookupError"
    print(f"{name}: first derivative {float(first(f)):.4g} of {3 * whole:.4g}; second {found} of {6 * whole:.4g}")
PY

venv/bin/python program.py >now 2>log || { cat now log >&2; exit 1; }
cat now
diff seen now >&2 || { echo "not what was seen: the lines with < were" >&2; exit 1; }
