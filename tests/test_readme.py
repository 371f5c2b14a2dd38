"""The README's Python blocks run, one after the other, and what it names exists."""

import re
from pathlib import Path

import pytest

import keras_metamix as kmm

README = Path(__file__).parents[1] / "README.md"
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


def test_links_and_commands_of_the_readme_exist():
    text = README.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (README.parent / target).is_file(), target
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    project = (README.parent / "pyproject.toml").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", text, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for command in re.findall(r"`(metamix-\w+)", text):
        assert re.search(rf"^{command} = ", project, re.M), command
