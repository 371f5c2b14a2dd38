"""docs/from_paper_to_code.md names code that exists, and leaves no public name of a method out."""

import ast
import re
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
PAGE = TOP / "docs" / "from_paper_to_code.md"
TEXT = PAGE.read_text(encoding="utf-8")
SYMBOLS = sorted({*re.findall(r"\[`([\w.]+)`\]\(([^)#]+\.py)\)", TEXT)})


def _names(body, prefix=""):
    """What a module or class defines, methods as CLASS.method."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from _names(node.body, f"{prefix}{node.name}.")


@pytest.mark.parametrize(("symbol", "file"), SYMBOLS)
def test_a_symbol_is_where_the_page_says(symbol, file):
    source = (PAGE.parent / file).read_text(encoding="utf-8")
    assert symbol in set(_names(ast.parse(source).body))


def test_every_link_to_code_names_a_symbol():
    linked = re.findall(r"\]\(([^)#]+\.py)\)", TEXT)
    assert len(linked) == len(re.findall(r"\[`[\w.]+`\]\(([^)#]+\.py)\)", TEXT)) > 40


@pytest.mark.parametrize("number", range(1, 7))
def test_each_equation_is_there(number):
    assert re.search(rf"^\| Eq\. {number}, .*\[`", TEXT, re.M)


@pytest.mark.parametrize("number", [1, 2, 5, 6, 7, 8, 9])
def test_each_figure_that_measures_something_is_there(number):
    rows = re.findall(r"^\| Fig\. ([\d, ]+)", TEXT, re.M)
    assert number in {int(n) for row in rows for n in row.replace(" ", "").strip(",").split(",")}


def test_numbers_of_bitmixer_are_those_of_its_page():
    measured = (TOP / "docs" / "bitmixer.md").read_text(encoding="utf-8")
    paragraph = TEXT[TEXT.index("On the extract of Fashion-MNIST") :]
    found = re.findall(r"\b\d\d\.\d\d\b", paragraph)
    assert len(found) == 8 and all(number in measured for number in found)
