"""Runs one pytest file as a bazel test: `bazel_main.py FILE [pytest arguments]`."""

import importlib.util
import pathlib
import sys

import pytest

PACKAGES = ("keras_metamix", "metamix_tflite")


def require_declared(top: pathlib.Path) -> None:
    """Exits when a package would come from the editable install instead of BUILD's own targets."""
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None or top not in pathlib.Path(spec.origin).parents:
            found = "nothing" if spec is None else spec.origin
            sys.exit(f"{name} must come from bazel's runfiles, {top}; found {found}")


if __name__ == "__main__":
    require_declared(pathlib.Path.cwd())
    status = pytest.main(["-p", "no:cacheprovider", *sys.argv[1:]])
    # `-m "not slow"` may leave nothing of a file: that is no failure.
    sys.exit(0 if status == pytest.ExitCode.NO_TESTS_COLLECTED else status)
