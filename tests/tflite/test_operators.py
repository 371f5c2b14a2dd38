"""Each family of operators is a file of the same name on either side, and found without a list."""

import importlib
import pkgutil

import pytest

from keras_metamix.graph import operators as trained
from keras_metamix.layers import integer
from metamix_tflite import operators as written
from metamix_tflite.encoding import Op
from metamix_tflite.operators.base import Family


def modules(package):
    """Name -> module, of each file in a package's folder."""
    return {
        found.name: importlib.import_module(f"{package.__name__}.{found.name}")
        for found in pkgutil.iter_modules(package.__path__)
    }


def classes(module, base):
    """A module's own classes of a base."""
    found = (c for c in vars(module).values() if isinstance(c, type) and issubclass(c, base))
    return [c for c in found if c.__module__ == module.__name__]


def test_every_family_of_the_folders_is_registered():
    for package, base, registry in (
        (trained, trained.Operator, trained.OPERATORS),
        (written, Family, written.FAMILIES),
    ):
        found = [c for m in modules(package).values() for c in classes(m, base) if c is not base]
        assert [type(entry) for entry in registry] == found
        assert len(found) > 5


def test_no_two_families_have_the_same_operator_or_layer():
    for field in ("litert", "layers"):
        claimed = [entry for family in written.FAMILIES for entry in getattr(family, field)]
        names = [getattr(entry, "name", entry) for entry in claimed]
        assert len(set(names)) == len(names)
    assert all(hasattr(Op, name) for name in written.LITERT)


@pytest.mark.parametrize("operator", trained.OPERATORS, ids=lambda o: type(o).__name__)
def test_files_have_the_operator_that_a_family_names(operator):
    assert operator.litert in written.LITERT


LAYERS = [
    (name, layer)
    for name, module in modules(trained).items()
    for layer in classes(module, integer.IntegerLayer)
]


@pytest.mark.parametrize(("name", "layer"), LAYERS)
def test_the_file_of_the_same_name_writes_an_integer_layer(name, layer):
    family = written.writer_of(layer.__new__(layer))
    assert type(family).__module__ == f"metamix_tflite.operators.{name}"
