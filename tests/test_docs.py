"""The pages of docs/: their code runs, they name what exists, and they leave nothing public out."""

import ast
import importlib
import importlib.util
import itertools
import json
import re
from pathlib import Path

import pytest

import keras_metamix as kmm
import metamix_tflite as mt

TOP = Path(__file__).parents[1]
DOCS = TOP / "docs"
FOLDERS = "docs", "examples", "findings"
PAGES = [*TOP.glob("*.md"), *(p for d in FOLDERS for p in (TOP / d).rglob("*.md"))]
NOTEBOOKS = sorted((TOP / "notebooks").glob("*.ipynb"))
PACKAGES = {"kmm": kmm, "mt": mt, "keras_metamix": kmm, "metamix_tflite": mt}


def read(*names):
    return TOP.joinpath(*names).read_text(encoding="utf-8")


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


GUIDES = [path.stem for path in sorted((DOCS / "guides").glob("*.md")) if blocks(path)]


def named(page):
    return pytest.mark.parametrize(page, PAGES, ids=lambda page: str(page.relative_to(TOP)))


@pytest.mark.long
@pytest.mark.parametrize("guide", GUIDES)
def test_the_blocks_of_a_guide_run(guide, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for number, block in enumerate(blocks(DOCS / f"guides/{guide}.md")):
        exec(compile(block, f"{guide}.md, block {number}", "exec"), names)


def test_the_blocks_of_the_concepts_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for number, block in enumerate(blocks(DOCS / "concepts.md")):
        exec(compile(block, f"concepts.md, block {number}", "exec"), names)


@named("page")
def test_what_blocks_name_exists(page):
    """Each block is Python, and each `kmm.name` and `mt.name` in it is public."""
    for block in blocks(page):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                package = PACKAGES.get(node.value.id)
                known = {*getattr(package, "__all__", ()), "data", "zoo"}
                assert package is None or node.attr in known, f"{node.value.id}.{node.attr}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_run_whole(path):
    """Its outputs are those of one run from the top, by `make notebooks`."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert "".join(cells[0]["source"]) == "%pip install --quiet keras-metamix"
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    assert not [output for output in outputs if output["output_type"] == "error"]


def directives():
    """Dotted names that the reference describes."""
    texts = [path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.md")]
    return re.findall(r"^::: (\S+)$", "\n".join(texts), re.M)


@pytest.mark.parametrize("package", [kmm, mt], ids=lambda package: package.__name__)
def test_every_public_name_is_in_the_reference_once(package):
    found = directives()
    for name in package.__all__:
        line = f"{package.__name__}.{name}"
        assert found.count(line) == 1, f"add the line '::: {line}' to a page of docs/reference"


def test_what_the_reference_names_exists():
    for name in directives():
        package, *rest = name.split(".")
        found = PACKAGES[package]
        for part in rest:
            if not hasattr(found, part):
                found = importlib.import_module(f"{found.__name__}.{part}")
            else:
                found = getattr(found, part)
        assert found.__doc__, name


@named("page")
def test_lists_and_tables_stand_apart(page):
    """One that follows a line of text directly is a list on the host, and none on the site."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    lines = text.splitlines()
    begins = re.compile(r"- |\d+\. |\|")
    for before, line in itertools.pairwise(lines):
        if begins.match(line) and before.strip() and not before.startswith("#"):
            same = begins.match(before) or before.startswith(("  ", "\t"))
            assert same, f"needs a blank line before it: {line}"


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"^ +- (?:.*: )?(\S+\.md)$", read("mkdocs.yml"), re.M))
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert pages <= listed, "add it to nav in mkdocs.yml"
    assert {page for page in listed if not page.startswith("repository/")} <= pages


def test_the_pictures_are_those_of_the_script():
    path = TOP / "scripts" / "concept_pictures.py"
    spec = importlib.util.spec_from_file_location("concept_pictures", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    drawn = {f"{name}.svg": draw().svg() for name, draw in module.PICTURES.items()}
    kept = {p.name: p.read_text(encoding="utf-8") for p in (DOCS / "pictures").glob("*.svg")}
    assert kept == drawn, "run: python scripts/concept_pictures.py"
    text = read("docs", "concepts.md") + read("docs", "index.md")
    assert all(f"](pictures/{name})" in text for name in drawn)


def test_one_version():
    version = kmm.__version__
    assert re.search(rf"^version: {re.escape(version)}$", read("CITATION.cff"), re.M)
    heads = re.findall(r"^## \[(.*?)\]( - \d{4}-\d\d-\d\d)?$", read("CHANGELOG.md"), re.M)
    assert heads[0] == ("Unreleased", "")
    assert heads[1][0] == version
    assert 'dynamic = ["version"]' in read("pyproject.toml")
