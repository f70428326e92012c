"""Write docs/bad-input.md: every bad input covered by a test, the error message, and the test's name.

    python -m tools.bad_inputs

The table is extracted from the tests' source, so it lists exactly what is tested. A test is listed if it expects one of
our errors, if its name says so (`NAMED_FOR_IT`), or if it is in tests/abuse.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "bad-input.md"
FOLDERS = ("core", "nodes", "training", "abuse")

ERRORS = {"StableVideoError", "CheckpointError", "InputError", "OutputError", "PromptError", "input_error"}
HELPERS = {"refused", "refusal"}
"""Test helpers that expect a refusal, and words in its message."""

NAMED_FOR_IT = re.compile(r"refused|skipped|_named\b|said_so|one_line|too_few")
"""Names of tests that are about bad input although they expect no exception."""

MESSAGES = ("message", "words")
"""Test parameters that hold an error message, wherever they are compared."""

SAID = re.compile(r"\b(line|lines|said|message|err|told|value|last)\b")
"""Variable names under which tests keep the answer."""

Kind = Literal["text", "pattern", "name"]

LONGEST = 110
"""Maximum characters of a table cell."""

HEAD = """\
# Bad input

What the tests hand to the pack, the library and the commands, and what they answer. A refusal is one line that says
what was given, what was needed and what to do; a command ends with code 2, a node stops its workflow and the server
goes on, and nothing is left half-written. `...` stands for what changes from case to case. Written by
`python -m tools.bad_inputs` from the tests themselves; a test compares.

Beside these, a fuzzer makes cases from seeds (`tools/fuzz`, `tests/nodes/test_fuzz_nodes.py`): 2,000 in `make test`,
100,000 in `make fuzz`. None may raise anything but a refusal of one printable line, take over 5 seconds of processor
time or 6 GiB, read outside the input, write outside the output folder, load a pickle, start a program or reach the
network; each failure prints the command that repeats it.
"""

PROMISED = (
    (
        "SD 1.5, SDXL, SV3D, SV4D and LoRA files",
        "core/test_checkpoint.py",
        "another_family_is_named_and_told_what_to_do",
    ),
    ("a truncated file", "core/test_checkpoint.py", "a_truncated_file_is_refused"),
    ("a header that lies about sizes", "core/test_checkpoint.py", "a_header_that_lies_is_refused"),
    ("a pickle `.ckpt`", "core/test_checkpoint.py", "a_pickle_is_refused_unopened_whatever_its_name"),
    ("missing tensors", "core/test_checkpoint.py", "a_missing_tensor_is_named"),
    ("extra tensors", "core/test_checkpoint.py", "an_unknown_tensor_is_named"),
    ("NaN weights", "core/test_checkpoint.py", "a_weight_that_is_not_finite_is_named"),
    (
        "a 0-byte, a text and a 1-pixel picture",
        "core/test_cli.py",
        "a_bad_picture_is_refused_before_the_checkpoint_is_opened",
    ),
    (
        "0 or 100,000 frames, fps 0, steps below 0",
        "core/test_cli.py",
        "a_bad_setting_is_refused_before_the_checkpoint_is_opened",
    ),
    (
        "an output folder that cannot be written",
        "abuse/test_saving.py",
        "a_read_only_folder_is_refused_before_anything_is_rendered",
    ),
    (
        "another family in the loader node",
        "nodes/test_server.py",
        "bad_input_is_a_line_in_the_node_and_the_server_goes_on",
    ),
    (
        "a LATENT of another size, part of a clip",
        "nodes/test_sampling_nodes.py",
        "what_does_not_fit_is_refused_before_the_model_runs",
    ),
    ("a one-pixel picture in a node", "nodes/test_image_nodes.py", "what_is_no_picture_is_refused"),
    ("a VAE of another family", "nodes/test_decode_node.py", "the_vae_of_another_family_is_refused"),
    (
        "an image encoder of another family",
        "nodes/test_conditioning_node.py",
        "an_image_encoder_without_projection_is_refused",
    ),
    (
        "more frames than memory holds",
        "nodes/test_sampling_nodes.py",
        "frames_beyond_the_whole_memory_are_refused_before_the_model_runs",
    ),
    (
        "clips that are unreadable, short or of another size",
        "training/test_data.py",
        "bad_clips_are_each_named_and_skipped",
    ),
    ("fewer clips than needed", "training/test_data.py", "too_few_clips_stop_with_their_names"),
    (
        "a run of another configuration",
        "training/test_resume.py",
        "a_state_of_another_configuration_is_refused_with_the_difference",
    ),
    (
        "a budget that holds not one band",
        "core/test_decode.py",
        "a_budget_that_holds_nothing_is_refused_with_the_least_that_works",
    ),
    ("latents with NaN, of odd shape or size", "nodes/test_decode_node.py", "what_cannot_be_decoded_is_refused"),
    ("masks of another size or count", "nodes/test_motion_nodes.py", "masks_that_do_not_fit_are_refused_in_the_node"),
    ("an end picture of another size", "nodes/test_motion_nodes.py", "ends_that_do_not_fit_are_refused_in_the_node"),
    ("a loop of two frames", "nodes/test_motion_nodes.py", "a_loop_of_two_frames_and_of_several_clips_is_refused"),
    ("windows longer than the clip", "nodes/test_motion_nodes.py", "windows_that_do_not_fit_are_refused_in_the_node"),
)
"""Bad inputs that must be handled, with the test of each: (what, file below tests, test)."""


@dataclass(frozen=True, slots=True)
class Row:
    given: str
    said: str
    test: str


@dataclass(frozen=True, slots=True)
class Word:
    """Expected words of a refusal: kind "text" for the words themselves, "pattern" for a parameter that holds a regular
    expression, "name" for a parameter that holds plain words."""

    kind: Kind
    text: str


@dataclass(slots=True)
class Module:
    """A test file's syntax tree, and the values of its module-level names."""

    path: Path
    tree: ast.Module
    values: dict[str, ast.expr] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path) -> Module:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = (node for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name))
        return cls(path, tree, {node.targets[0].id: node.value for node in named})

    def tests(self) -> Iterator[ast.FunctionDef]:
        yield from (
            node for node in self.tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        )


@dataclass(frozen=True, slots=True)
class Parameters:
    """One `parametrize`: its names, and the expressions of each case."""

    names: tuple[str, ...]
    cases: tuple[tuple[ast.expr, ...], ...]


def page() -> str:
    """The content of the page."""
    parts = [HEAD, _promised()]
    for folder in FOLDERS:
        for path in sorted((ROOT / "tests" / folder).glob("test_*.py")):
            module = Module.of(path)
            rows = [row for test in module.tests() if is_listed(module, test) for row in rows_of(module, test)]
            if rows:
                parts.append(_section(module, rows))
    return "\n".join(parts)


def _promised() -> str:
    rows = [f"| {what} | `tests/{file}::test_{test}` |" for what, file, test in PROMISED]
    return "\n".join(["## What was promised to be handled", "", "| given | test |", "|---|---|", *rows, ""])


def _section(module: Module, rows: list[Row]) -> str:
    about = (ast.get_docstring(module.tree) or "").split("\n\n")[0].replace("\n", " ")
    lines = [f"## {module.path.relative_to(ROOT).as_posix()}", "", about, ""]
    lines += ["| given | answer | test |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {row.given} | {row.said} | `{row.test}` |" for row in rows), ""])


def is_listed(module: Module, test: ast.FunctionDef) -> bool:
    abuse = module.path.parent.name == "abuse"
    return abuse or bool(NAMED_FOR_IT.search(test.name)) or any(True for _ in _expectations(test))


def _expectations(test: ast.FunctionDef) -> Iterator[ast.Call]:
    """Calls in a test that expect one of our errors."""
    for node in ast.walk(test):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            kinds = ast.unparse(node.args[0]) if name == "pytest.raises" and node.args else ""
            if name in HELPERS or ERRORS & set(re.findall(r"\w+", kinds)):
                yield node


def rows_of(module: Module, test: ast.FunctionDef) -> list[Row]:
    """One row for each case of the parameters that hold a message, or one for the whole test."""
    words = list(dict.fromkeys([*_words(test), *(Word("pattern", name) for name in MESSAGES)]))
    names = {word.text for word in words if word.kind != "text"}
    tables = [found for each in test.decorator_list if (found := _parameters(module, each)) is not None]
    told = next((table for table in tables if names & set(table.names)), tables[0] if len(tables) == 1 else None)
    if told is None or not told.cases:
        return [Row(_sentence(test), _fixed(words), test.name)]
    return [_case(module, test, dict(zip(told.names, case, strict=True)), words) for case in told.cases]


def _case(module: Module, test: ast.FunctionDef, values: Mapping[str, ast.expr], words: list[Word]) -> Row:
    """The row of one case: parameters that hold a message become the answer; the others, and values that a table holds
    under a message, become the input."""
    messages = {word.text: word for word in reversed(words) if word.kind != "text" and word.text in values}
    said = [_said(messages[name], value) for name, value in values.items() if name in messages]
    others = [value for name, value in values.items() if name not in messages or not _is_text(value)]
    given = [_code(value) for value in (*others, *_looked_up(module, values.values()))]
    answer = _escaped("; ".join(each for each in said if each)) or _fixed(words)
    return Row(": ".join([_sentence(test), ", ".join(given)] if given else [_sentence(test)]), answer, test.name)


def _said(word: Word, value: ast.expr) -> str:
    """The message in a parameter; empty if it is computed."""
    if not _is_text(value):
        return ""
    return _plain(_text(value)) if word.kind == "pattern" else _text(value)


def _looked_up(module: Module, keys: Collection[ast.expr]) -> Iterator[ast.expr]:
    """Values under the given keys in the module's tables."""
    for table in module.values.values():
        if isinstance(table, ast.Dict):
            yield from (value for key, value in zip(table.keys, table.values, strict=True) if key in keys)


def _words(test: ast.FunctionDef) -> Iterator[Word]:
    """Words that a test expects in a refusal."""
    for call in _expectations(test):
        matches = [keyword.value for keyword in call.keywords if keyword.arg == "match"]
        yield from (word for each in matches for word in _word(each, "pattern"))
        if ast.unparse(call.func) == "refused":
            yield from (word for each in call.args[1:] for word in _word(each, "name"))
    for node in ast.walk(test):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("re.search", "re.fullmatch"):
            yield from _word(node.args[0], "pattern")
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In):
            where = ast.unparse(node.comparators[0])
            if any(f"{name}(" in where for name in HELPERS) or SAID.search(where):
                yield from _word(node.left, "name")


def _word(node: ast.expr, kind: Kind) -> Iterator[Word]:
    if isinstance(node, ast.Constant | ast.JoinedStr):
        text = _text(node)
        yield Word("text", _plain(text) if kind == "pattern" else text)
    else:
        yield from (Word(kind, each.id) for each in ast.walk(node) if isinstance(each, ast.Name))


def _parameters(module: Module, decorator: ast.expr) -> Parameters | None:
    """A `parametrize` whose cases are literal, inline or under a module-level name; None for anything else."""
    if isinstance(decorator, ast.Name):
        decorator = module.values.get(decorator.id, decorator)
    if not (isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.parametrize"):
        return None
    names, cases = decorator.args[:2]
    given = [ast.literal_eval(names)] if isinstance(names, ast.Constant) else list(ast.literal_eval(names))
    cases = module.values.get(cases.id, cases) if isinstance(cases, ast.Name) else cases
    listed = cases.keys if isinstance(cases, ast.Dict) else getattr(cases, "elts", None)
    if listed is None or any(isinstance(each, ast.Starred) or each is None for each in listed):
        return None
    rows = [tuple(_elements(each)) if len(given) > 1 else (each,) for each in listed]
    return Parameters(tuple(given), tuple(row for row in rows if len(row) == len(given)))


def _elements(case: ast.expr) -> list[ast.expr]:
    """The elements of a tuple or of `pytest.param(...)`."""
    return case.args if isinstance(case, ast.Call) else getattr(case, "elts", [case])


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
    return str(node.value) if isinstance(node, ast.Constant) else ast.unparse(node)


def _plain(pattern: str) -> str:
    """A regular expression as plain text, with `...` for variable parts."""
    loose = re.sub(r"(?<!\\)(\.[*+]\??|\[[^\]]*\][*+]?|\\d\+)", "...", re.sub(r"\(\?:|(?<!\\)[()^$?]", "", pattern))
    return re.sub(r"(?<!\\)\|", " or ", loose).replace("\\\\", "\0").replace("\\", "").replace("\0", "\\")


def _fixed(words: list[Word]) -> str:
    return _escaped("; ".join(word.text for word in words if word.kind == "text" and word.text.strip())) or "as it says"


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _code(node: ast.expr) -> str:
    """A value formatted as code; text without its quotes."""
    text = _text(node) if _is_text(node) else ast.unparse(node)
    return f"`{_escaped(text)}`" if text.strip() else "``` ```" if text else "nothing"


def _sentence(test: ast.FunctionDef) -> str:
    return test.name.removeprefix("test_").replace("_", " ")


def _escaped(text: str) -> str:
    """Text as one line, escaped and shortened for a table cell."""
    line = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
    line = line if len(line) <= LONGEST else f"{line[:LONGEST]}..."
    return line.replace("|", "\\|").replace("`", "'").replace("<", "&lt;").strip()


def named_tests() -> Mapping[str, set[str]]:
    """Test file -> its tests that are named in the written page."""
    named: dict[str, set[str]] = {}
    current: set[str] = set()
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            current = named.setdefault(line[3:], set())
        elif match := re.search(r"\| `(?:tests/\S+::)?(test_\w+)` \|$", line):
            current.add(match[1])
    return named


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}: {sum(map(len, named_tests().values()))} tests\n")
