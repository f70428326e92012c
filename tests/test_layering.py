"""The rules of the house: who may import whom, how long a function may be, and nothing left unfinished."""

import ast
import statistics
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "svd_core"
PRODUCT = ("svd_core", "nodes", "training", "benchmarks", "tools")

BASE = {"config", "errors", "moves", "settings", "sinusoid", "strict_json"}
ARROWS = {
    "errors": set(),
    "strict_json": {"errors"},
    "moves": {"errors"},
    "config": {"errors"},
    "sinusoid": {"config", "errors"},
    "settings": {"config", "errors"},
    "demo": set(),
    "verdicts": set(),
    "conditioning": BASE,
    "sampling": BASE | {"conditioning"},
    "measure": BASE | {"conditioning", "sampling"},
    "motion": BASE | {"conditioning", "sampling"},
    "recipe": BASE | {"verdicts"},
    "media": BASE | {"recipe"},
    "kernels": BASE | {"verdicts"},
    "device_memory": {"errors"},
    "decode": BASE | {"kernels", "device_memory"},
    "model": BASE | {"kernels", "decode", "device_memory", "verdicts"},
    "checkpoint": BASE | {"model"},
    "live_bytes": set(),
    "planning": BASE | {"decode", "device_memory", "live_bytes", "model", "motion"},
    "clip": BASE,
    "controls": BASE | {"motion"},
    "shot": BASE | {"controls", "media", "motion", "planning", "sampling"},
    "render": BASE | {"clip", "conditioning", "model", "motion", "planning", "sampling", "shot"},
    "pipeline": BASE
    | {
        "clip",
        "conditioning",
        "controls",
        "device_memory",
        "model",
        "motion",
        "planning",
        "render",
        "sampling",
        "shot",
    },
    "loading": BASE | {"checkpoint", "model", "pipeline"},
}
"""What each room of svd_core may import from the others; from the package itself, only its version."""
TOP = {"__init__", "__main__", "cli"}
"""These see everything, and nothing below sees them."""

EVERYWHERE = {"torch", "numpy", "einops", "safetensors", "PIL"} | sys.stdlib_module_names
ONLY_IN = {
    "av": {"media", "cli"},
    "tqdm": {"cli"},
    "triton": {"kernels"},
    "sageattention": {"model"},
    "flash_attn_interface": {"model"},
    "imwatermark": {"media"},
    "ray": {"cli"},
}

MAY_IMPORT = {
    "svd_core": set(),
    "nodes": {"svd_core"},
    "training": {"svd_core"},
    "benchmarks": {"svd_core", "tools", "training"},
    "tools": {"svd_core", "training"},
}
"""Which of our packages each of our packages may import."""

MEDIAN_LINES, MOST_LINES, MOST_LISTING_LINES = 12, 40, 60
LISTING = {"__init__", "define_schema"}
"""Functions that list layers or widgets one after the other, and may be longer for it."""


class Import(NamedTuple):
    file: Path
    line: int
    parts: tuple[str, ...]
    relative: bool
    for_types: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {'.'.join(self.parts)}"


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(file: Path) -> Iterator[Import]:
    """Each import of a file, relative ones resolved to absolute names."""
    for_types = {id(inner) for node in ast.walk(tree_of(file)) if _is_for_types(node) for inner in ast.walk(node)}
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for parts, relative in _targets(file, node):
                yield Import(file, node.lineno, parts, relative, id(node) in for_types)


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _targets(file: Path, node: ast.Import | ast.ImportFrom) -> Iterator[tuple[tuple[str, ...], bool]]:
    if isinstance(node, ast.Import):
        yield from ((tuple(alias.name.split(".")), False) for alias in node.names)
        return
    package = file.relative_to(ROOT).parent.parts
    origin = package[: len(package) + 1 - node.level] if node.level else ()
    module = (*origin, *(node.module.split(".") if node.module else ()))
    # `from . import x` may name a module, so each name counts; the rest of the path decides everywhere else.
    yield from (((*module, alias.name), node.level > 0) for alias in node.names)


def room(parts: tuple[str, ...]) -> str:
    """The module or package directly in svd_core that a dotted name lies in."""
    name = parts[1] if len(parts) > 1 else "__init__"
    return name if (CORE / name).is_dir() or (CORE / f"{name}.py").is_file() else "__init__"


def room_of(file: Path) -> str:
    return room(file.relative_to(ROOT).with_suffix("").parts)


CORE_FILES = [pytest.param(file, id=str(file.relative_to(CORE))) for file in sources("svd_core")]


@pytest.mark.parametrize("file", CORE_FILES)
def test_the_core_imports_only_what_comfyui_installs(file):
    here = room_of(file)
    for found in imports(file):
        top = found.parts[0]
        allowed = found.relative or top in EVERYWHERE or here in ONLY_IN.get(top, ())
        assert allowed, f"{found}: allowed are the standard library, torch, numpy, einops, safetensors and Pillow"


@pytest.mark.parametrize("file", CORE_FILES)
def test_the_core_names_itself_relatively_and_never_leaves_itself(file):
    for found in imports(file):
        if found.relative:
            assert found.parts[0] == "svd_core", f"{found}, outside the package"
        else:
            assert found.parts[0] != "svd_core", f"{found}: write it as a relative import"


@pytest.mark.parametrize("file", CORE_FILES)
def test_arrows_run_one_way(file):
    here = room_of(file)
    if here in TOP:
        return
    assert here in ARROWS, f"svd_core/{here} is new: say in ARROWS what it may import"
    for found in imports(file):
        if found.relative and not found.for_types and found.parts != ("svd_core", "__version__"):
            there = room(found.parts)
            assert there == here or there in ARROWS[here], f"{found}: {here} may not import {there}"


def test_the_arrows_close_no_circle():
    below = {name: set(rooms) for name, rooms in ARROWS.items()}
    while below:
        free = {name for name, rooms in below.items() if not rooms & below.keys()}
        assert free, f"these import each other in a circle: {sorted(below)}"
        below = {name: rooms for name, rooms in below.items() if name not in free}


@pytest.mark.parametrize("package", PRODUCT)
def test_packages_import_only_the_packages_below_them(package):
    for file in sources(package):
        for found in imports(file):
            top = found.parts[0]
            allowed = top == package or top not in PRODUCT or top in MAY_IMPORT[package]
            assert allowed, f"{found}: {package} may not import {top}"


def test_importing_the_core_loads_no_host_and_nothing_heavy():
    unwanted = ("comfy", "nodes", "folder_paths", "av", "diffusers", "transformers", "open_clip", "training", "tools")
    program = f"import sys, svd_core; print(*[name for name in {unwanted} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []


FUNCTIONS = [
    (file, node)
    for package in PRODUCT
    for file in sources(package)
    for node in ast.walk(tree_of(file))
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
]


def lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return function.end_lineno - function.lineno + 1


def test_no_function_is_too_long_to_read():
    for file, function in FUNCTIONS:
        most = MOST_LISTING_LINES if function.name in LISTING else MOST_LINES
        where = f"{file.relative_to(ROOT)}:{function.lineno} {function.name}"
        assert lines(function) <= most, f"{where} has {lines(function)} lines, more than {most}"


def test_most_functions_are_short():
    assert statistics.median(lines(function) for _, function in FUNCTIONS) <= MEDIAN_LINES


@pytest.mark.parametrize("package", PRODUCT)
def test_nothing_is_left_unfinished(package):
    unfinished = ("TODO", "FIXME", "XXX", "NotImplemented")
    for file in sources(package):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            found = [word for word in unfinished if word in line]
            assert not found, f"{file.relative_to(ROOT)}:{number} says {found[0]}"
