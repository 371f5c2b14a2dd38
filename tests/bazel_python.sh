#!/bin/sh
# The interpreter that bazel's py_binary and py_test targets run with: that of the checkout's .venv/.
# Bazel runs this file through a symbolic link; the link's end is in the checkout.
here=$(dirname "$(readlink -f "$0")")
python=$here/../.venv/bin/python
if [ ! -x "$python" ]; then
  echo "bazel_python.sh: .venv/bin/python is missing in the checkout: run 'make dev' first" >&2
  exit 127
fi
exec "$python" "$@"
