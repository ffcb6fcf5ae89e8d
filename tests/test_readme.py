"""The README's code blocks run, its commands exist, and its figures say where they are from."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from seqconv.cli import parser

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


def commands() -> list[list[str]]:
    lines = "".join(blocks("sh")).splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def test_every_block_is_of_a_kind_that_is_read_here():
    assert {name for name, _ in BLOCKS} == {"python", "sh"}
    assert README.count("```") == 2 * len(BLOCKS)


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_runs(number):
    code = compile(blocks("python")[number], f"README.md, python block {number + 1}", "exec")
    exec(code, {"__name__": "__main__"})


def test_commands_exist():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    for words in commands():
        while "=" in words[0]:  # a variable set for the command
            words = words[1:]
        if words[0] == "torchrun":
            words = words[words.index("seqconv") :]
        if words[0] == "make":
            assert words[1] in targets, words
        elif words[0] == "seqconv":
            parser().parse_args(words[1:])  # exits where the command does not take them
        else:
            assert words[:2] == ["python", "-m"], words
            assert (ROOT / words[2].replace(".", "/")).exists() or (ROOT / f"{words[2].replace('.', '/')}.py").exists()


def test_the_two_commands_come_first_and_ci_runs_the_second():
    first, second = [words for words in commands() if words[0] == "make"][:2]
    assert (first, second) == (["make", "compare"], ["make", "test"])
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_tables_of_figures_name_machine_and_command():
    for section in re.split(r"^## ", README, flags=re.MULTILINE)[1:]:
        figures = re.search(r"^\|.*\|\s*\d+\.\d+", section, flags=re.MULTILINE)
        if figures:
            assert "Machine: " in section, section.splitlines()[0]
            assert "Command: " in section, section.splitlines()[0]


def test_environment_variables_are_all_listed():
    read = set()
    for path in [*(ROOT / "seqconv").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]:
        read |= set(re.findall(r"\"(SEQCONV_[A-Z_]+)\"", path.read_text(encoding="utf-8")))
    assert read
    assert read == set(re.findall(r"^\| `(SEQCONV_[A-Z_]+)`", README, flags=re.MULTILINE))
