#!/usr/bin/env bash
# XLA's elementwise loops for CPUs are vectorised badly, or not at all, where the last axis is short: 16 channels.
#
# A fused elementwise kernel is one pass over contiguous memory, so its speed should not depend on how the values are
# divided into axes. But XLA makes one loop for each axis of the output, and LLVM unrolls an inner loop over 16 values
# before the vectoriser sees it: a division becomes scalar, a clip is vectorised over strided single loads. Of an
# NHWC activation of few channels that takes two to three times as long as memory does. A reshape to long rows inside
# the compiled function does not help, nor does an optimisation barrier around it: XLA folds it into the kernel, whose
# loops follow the shape outside. The function has to be given rows and to return rows.
#
# Seen with tensorflow 2.21.0 on x86-64 with AVX2 and AVX-512, 2026-11-29.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3.11}" -m venv venv
venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check tensorflow==2.21.0

cat >seen <<'SEEN'
(8, 28, 28, 16): division scalar, clip by strided single loads
(8, 28, 28, 16), rows of 448 inside: division scalar, clip by strided single loads
(8, 28, 28, 16), rows of 448 outside: division vectorised, clip vectorised
(8, 28, 28, 64): division vectorised, clip vectorised
SEEN

cat >program.py <<'PY'
import glob
import os
import re
import sys

case, operation = sys.argv[1:]
os.environ["XLA_FLAGS"] = f"--xla_dump_to=dump-{case}-{operation} --xla_dump_hlo_as_text"
import tensorflow as tf

shape = (8, 28, 28, 64 if case == "wide" else 16)
operations = {"division": lambda x, s: x / s, "clip": lambda x, s: tf.minimum(tf.maximum(x, -s), s)}


@tf.function(jit_compile=True)
def kernel(x, s):
    rows = tf.reshape(x, (-1, 448)) if case == "inside" else x
    return tf.reshape(operations[operation](rows, s), x.shape)


def whole(x, s):
    rows = tf.reshape(x, (-1, 448)) if case == "outside" else x
    return tf.reshape(kernel(rows, s), x.shape)


tf.function(whole)(tf.ones(shape), tf.constant(3.0))
(file,) = glob.glob(f"dump-{case}-{operation}/*ir-with-opt.ll")
code = open(file).read()
if not re.search(r"<\d+ x float>", code):
    print("scalar")
elif re.search(r"load <\d+ x float>", code):
    print("vectorised")
else:
    print("by strided single loads")
PY

seen() {
    name=$1
    case=$2
    for operation in division clip; do
        TF_CPP_MIN_LOG_LEVEL=3 venv/bin/python program.py "$case" "$operation" >"$operation" 2>log || {
            tail log >&2
            exit 1
        }
    done
    echo "$name: division $(cat division), clip $(cat clip)"
}

{
    seen "(8, 28, 28, 16)" plain
    seen "(8, 28, 28, 16), rows of 448 inside" inside
    seen "(8, 28, 28, 16), rows of 448 outside" outside
    seen "(8, 28, 28, 64)" wide
} >now
cat now
diff seen now >&2 || { echo "not what was seen: the lines with < were" >&2; exit 1; }
