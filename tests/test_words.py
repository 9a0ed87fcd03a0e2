"""Test that docstrings, comments, messages, test names and documents use no phrase that readers must decode."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from people import ROOT

# Each phrase is a regular expression for text on a single line, with what to write instead. `\x20` is a space that
# must be on the same line of the file, too.
PHRASES = {
    r"(?:is|are|was|were) none": "say what is missing or invalid",
    r"(?<!here\x20)(?:is|are|was|were) no (?!longer|more|less|better|worse|faster|slower|larger|smaller)[a-z]+": (
        "write 'is not a …' or 'there is no …'"
    ),
    r"(?:go|goes|went|going) on": "write 'continue'",
    r"(?:tell|tells|told|telling) of": "write 'report'",
    r"[Mm]end(?:s|ed|ing)?": "write 'fix'",
    r"[Bb]ut for": "write 'except'",
    r"of (?:ours|theirs|mine)": "name the thing",
    r"[Ss]o many": "write 'at most N'",
    r"[Ss]hall": "write 'must' or 'will'",
    r"Of (?!course)\S+": "begin the sentence with its subject",
    r"; of (?:a|an|the|each|all|both|several|two|few|equal)": "begin the clause with its subject",
    r"[Ww]hat (?:\w+ ){1,5}finds wrong": "name the thing",
}
# These exact phrases are plainly right: an option's value, and a contrast.
ALLOWED = ("data.cache is none", "If result.json exists, but for other weights")

WORD = r"(?<![A-Za-z](?=[A-Za-z]))(?:{})(?![A-Za-z])"
EXACT = {phrase: re.compile(WORD.format(phrase)) for phrase in PHRASES}
# In a file, the words of a phrase may be split by line breaks, comment signs, quotes, or underscores in a test's name.
LOOSE = {phrase: re.compile(phrase.replace(" ", r"[\s#\"'fr_]+")) for phrase in PHRASES}
ANY_LOOSE = re.compile("|".join(pattern.pattern for pattern in LOOSE.values()))

FOLDERS = ("nrsrd_jax", "configs", "convert", "benchmarks", "demo", "docs", "tests")
FILES = ("train.py", "eval.py", "README.md", "CONTRIBUTING.md", "CHANGELOG.md")


def comments(source: str) -> Iterator[tuple[int, int, str]]:
    """Yield (first line, last line, text) of each comment. Comments on successive lines are one."""
    first = last = 0
    text = ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if text and token.start[0] == last + 1:
                text += " "
            else:
                if text:
                    yield first, last, text
                first, text = token.start[0], ""
            last, text = token.start[0], text + token.string.lstrip("#")
    if text:
        yield first, last, text


def strings(source: str) -> Iterator[tuple[int, int, str]]:
    """Yield (first line, last line, text) of each string, also joined ones, and of each test's name."""
    parts: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts |= {id(part) for part in node.values}
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
            yield node.lineno, node.end_lineno or node.lineno, text
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.lineno, node.end_lineno or node.lineno, node.value
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.lineno, node.lineno, node.name.replace("_", " ")


def paragraphs(source: str) -> Iterator[tuple[int, int, str]]:
    """Yield (first line, last line, text) of each paragraph or table row of a Markdown file, without its code."""
    prose = re.sub(r"^```.*?^```", lambda block: "\n" * block[0].count("\n"), source, flags=re.DOTALL | re.MULTILINE)
    for block in re.finditer(r"^\|.*|(?:^(?!\|).*\S.*\n?)+", prose, re.MULTILINE):
        first = prose.count("\n", 0, block.start()) + 1
        yield first, first + block[0].rstrip("\n").count("\n"), re.sub(r"`[^`]*`", "`code`", block[0])


def find_phrases(source: str, markdown: bool = False) -> list[tuple[int, str, str]]:
    """Return (line, text around the phrase, advice) for each phrase of PHRASES in a file."""
    # Reading the tokens takes long, and most files have nothing that could be a phrase.
    if not ANY_LOOSE.search(source):
        return []
    lines, found = source.split("\n"), []
    for first, last, text in paragraphs(source) if markdown else (*comments(source), *strings(source)):
        text = " ".join(text.split())
        for phrase in ALLOWED:
            text = text.replace(phrase, "")
        for phrase, advice in PHRASES.items():
            for match in EXACT[phrase].finditer(text):
                place = LOOSE[phrase].search("\n".join(lines[first - 1 : last]))
                line = first + (place.string.count("\n", 0, place.start()) if place else 0)
                found.append((line, text[max(0, match.start() - 30) : match.end() + 30], advice))
    return found


@pytest.mark.parametrize("sentence", [
    "what one of them finds wrong ends all with a line.",
    "On CPU the copy to the host is none",
    "Lines that are none, as a kill cuts them, are left out",
    "InputError if one is none, or not in 0..1",
    "(Orbax tells of every file otherwise)",
    "Of [B, N, D] XLA transposes what it need not",
    "The features kept in `path`; if there are none, of `embed()`",
    "the largest t at which one of so many impostors at most is below t",
    "Of a damaged last checkpoint the one before is used.",
    "the same command goes on",
    "A number that is no camera",
    "It is no probability",
    "a file of theirs is left as it is",
    "all but for the last",
    "the row shall be mended",
    "manifests are read; of a folder the names are",
])  # fmt: skip
def test_a_sentence_that_must_be_decoded_is_found(sentence):
    half = sentence.index(" ", len(sentence) // 3)
    first, second = sentence[:half], sentence[half:]
    for source, markdown in (
        (f'"""{first}\n{second}"""', False),
        (f"x = 1\n# {first}\n# {second}\n", False),
        (f"raise ValueError({first!r}\n    f{second!r})", False),
        (f"Text.\n\n- {first}\n {second}\n", True),
    ):
        assert find_phrases(source, markdown), source


def test_the_place_of_a_phrase_in_a_file_is_its_line():
    source = 'def f():\n    """Do it.\n\n    The same command goes\n    on.\n    """\n'
    assert find_phrases(source) == [(4, "Do it. The same command goes on.", "write 'continue'")]
    assert find_phrases("def test_a_camera_that_is_none_is_named(): ...")[0][0] == 1


@pytest.mark.parametrize("source", [
    "'''There is no such file.'''", "x is None", "# This is no longer needed.", "'If x is None, recommend a value.'",
    "# Of course.", "# a shallow copy", "is_none = is_no_file", "# They say what it finds.",
])  # fmt: skip
def test_plain_sentences_and_code_are_not_found(source):
    assert find_phrases(source) == []


def test_the_project_uses_no_phrase_that_readers_must_decode():
    """Check all docstrings, comments, strings, test names and documents. This file's samples are left out."""
    paths = [ROOT / name for name in FILES] + sorted((ROOT / "docs").glob("*.md"))
    paths += [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")) if path != Path(__file__)]
    found = [
        f"{path.relative_to(ROOT)}, line {line}: {advice}: … {text} …"
        for path in paths
        for line, text, advice in find_phrases(path.read_text(encoding="utf-8"), path.suffix == ".md")
    ]
    assert not found, "rewrite these as plain sentences, or add exact phrases to ALLOWED:\n" + "\n".join(found)
