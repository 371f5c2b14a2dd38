"""The templates of the pages, which share one style."""

from __future__ import annotations

from importlib import resources

import jinja2


def template(name: str) -> jinja2.Template:
    """A template of this package; all that it is given is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _source(name: str) -> str:
    return (resources.files("keras_metamix.report") / name).read_text("utf-8")
