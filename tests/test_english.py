"""Docstrings and messages are whole sentences in standard English."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("torchlimits/**/*.py"), *ROOT.glob("scripts/*.py")])

#: a first sentence that begins so has neither a verb nor a noun of its own
FRAGMENT = re.compile(
    r"(Of|Those|That of|With|Without|As|By|In|For|From|At(?! most)|On|Not|Also|One,|Turns) "
)
#: phrases that only their author understands, and what stands for them
PHRASES = {
    r"\btold from (0|zero)\b": "significantly above 0, distinguished from 0",
    r"\bno error bar to\b": "has no standard error",
    r"\bchances on\b": "random components along",
    r"\bbut by rounding\b": "through rounding alone",
    r"\bbut for (those|rounding|what)\b": "except",
    r"\bfor ever\b": "forever",
    r"\bfor all that is known\b": "as far as is known",
    r"\bas long as anybody\b": "while any thread",
    r"\bno (float|int|integer) tensor\b": "not a float tensor",
}


def docstrings(tree):
    """(line, text) of every docstring of a file."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        text = ast.get_docstring(node) if isinstance(node, kinds) else None
        if text:
            yield node.body[0].lineno, text


def strings(tree):
    """Every string, docstrings and messages; pieces of f-strings are joined."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            pieces = [getattr(piece, "value", "x") for piece in node.values]
            yield "".join(p if isinstance(p, str) else "x" for p in pieces)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def faults(source):
    """What is wrong with the English of a file's docstrings and strings."""
    tree = ast.parse(source)
    found = []
    for line, text in docstrings(tree):
        first, _, rest = text.partition("\n\n")
        first = " ".join(first.split())
        if FRAGMENT.match(first):
            found.append(f"{line}: begins as a fragment: {first}")
        elif not re.search(r"([.:?!]|::)(`*\)*)$", first) and not rest.lstrip().startswith(
            ".. math"
        ):
            found.append(f"{line}: no full stop: {first}")
    for text in strings(tree):
        words = " ".join(text.split())
        found += [
            f"write {better!r}: ...{match[0]}..."
            for pattern, better in PHRASES.items()
            if (match := re.search(pattern, words))
        ]
    return sorted({*found})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_docstrings_and_messages_are_sentences(path):
    assert faults(path.read_text()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        '"""Of one step."""',
        '"""Those at one u."""',
        '"""That of r2."""',
        '"""With r2 >= 0."""',
        '"""A sentence without its end"""',
        '"""Fine."""\nlaw = "values that are not told from 0"',
        'raise ValueError(f"got {n}: there is no error bar to one")',
        '"""Normals.\n\n    They lie along the new one, with chances on\n    those before."""',
        '"""A sum.\n\n    It does not depend on the batch but by rounding."""',
        '"""Wait for ever."""',
    ],
)
def test_the_check_notices(wrong):
    assert len(faults(wrong)) == 1


def test_the_check_lets_sentences_pass():
    assert (
        faults('"""Settings of one step.\n\n    They differ from 0 significantly.\n    """') == []
    )
