# Stands in for pyright's bundled stubs, which know another TensorFlow: every name is of type Any.
from typing import Any

def __getattr__(name: str) -> Any: ...
