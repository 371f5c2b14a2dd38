#!/usr/bin/env bash
# One jit_compile function is compiled by XLA twice for the same shapes: called eagerly, and from inside a graph.
#
# TensorFlow keeps compiled kernels by the function's name and the shapes of its arguments, and one trace has one
# name: an eager call before training should leave nothing to compile in the first step. But an eager call adds
# attributes (_XlaMustCompile, config_proto, executor_type) to the function, and they are part of the key. Whoever
# warms kernels up by eager calls, or ahead of time in threads, pays for each of them twice. Two graphs do share
# them: a warm-up has to call the kernel from a tf.function of its own.
#
# Seen with tensorflow 2.21.0, 2026-11-29.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3.11}" -m venv venv
venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check tensorflow==2.21.0

cat >seen <<'SEEN'
eager, eager again: 3 compilations of 3 shapes, 1 trace
eager, then in a graph: 6 compilations of 3 shapes, 1 trace
in a graph, then eager: 6 compilations of 3 shapes, 1 trace
in a graph, then in another: 3 compilations of 3 shapes, 1 trace
SEEN

cat >program.py <<'PY'
import sys

import tensorflow as tf

traces = 0


@tf.function(jit_compile=True, input_signature=[tf.TensorSpec((None, 8))])
def kernel(x):
    global traces
    traces += 1
    return tf.round(x) * 2.0


def in_a_graph():
    return tf.function(lambda x: kernel(x), input_signature=[tf.TensorSpec((None, 8))])


kinds = {"eager": lambda: kernel, "graph": in_a_graph}
for call in [kinds[name]() for name in sys.argv[1:]]:
    for rows in (16, 32, 64):
        call(tf.ones((rows, 8)))
print(traces)
PY

seen() {
    name=$1
    shift
    traces=$(TF_CPP_MIN_LOG_LEVEL=0 TF_CPP_VMODULE=device_compiler=1 venv/bin/python program.py "$@" 2>log) || {
        tail log >&2
        exit 1
    }
    echo "$name: $(grep -c 'Compilation of XLA executable time' log) compilations of 3 shapes, $traces trace"
}

{
    seen "eager, eager again" eager eager
    seen "eager, then in a graph" eager graph
    seen "in a graph, then eager" graph eager
    seen "in a graph, then in another" graph graph
} >now
cat now
diff seen now >&2 || { echo "not what was seen: the lines with < were" >&2; exit 1; }
