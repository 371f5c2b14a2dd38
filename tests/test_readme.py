"""The README's Python blocks run, one after the other, and what it names exists."""

import re
from pathlib import Path

import pytest

import keras_metamix as kmm

TOP = Path(__file__).parents[1]
README = TOP / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.slow
def test_the_python_blocks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"README block {number}", "exec"), names)
    assert "XNNPACK" in capsys.readouterr().out
    assert kmm.BitAssignment.load("bits.json") == names["bits"]
    assert (tmp_path / "model.keras").is_file()


PAGES = [
    *TOP.glob("*.md"),
    *(p for d in ("docs", "examples", "findings") for p in (TOP / d).rglob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_links_of_a_page_exist(page):
    for target, anchor in re.findall(
        r"\]\(([^)#:]*)(?:#([^)]+))?\)", page.read_text(encoding="utf-8")
    ):
        found = page.parent / target if target else page
        assert found.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.M)
            names = [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads]
            assert anchor in names, f"{target}#{anchor}"


def test_commands_of_the_readme_exist():
    text = README.read_text(encoding="utf-8")
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    project = (README.parent / "pyproject.toml").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", text, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for command in re.findall(r"`(metamix-\w+)", text):
        assert re.search(rf"^{command} = ", project, re.M), command
