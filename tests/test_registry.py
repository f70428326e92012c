"""What the Comfy Registry asks of a pack, checked on just the files that it would publish."""

import ast
import re
from pathlib import Path

import pytest

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]

SHIPPED = ("__init__.py", "nodes", "svd_core", "workflows", "subgraphs", "locales", "web")
TEXTS = ("README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", "requirements.txt")

KINDS = {".py", ".typed", ".json", ".md", ".webp", ".png", ".jpg", ".safetensors"}
"""No JavaScript, no programs, no archives, no pickles."""

LARGEST, ALL = 20 * 2**20, 60 * 2**20
"""Bytes: of the demo model's file, and of everything."""

NOT_CALLED = {"eval", "exec", "compile", "__import__", "breakpoint", "input"}
"""Code from text, which the registry refuses; and what would stop a server until somebody types."""

NOT_IMPORTED = {
    *("subprocess", "pip", "ensurepip", "venv", "pty", "multiprocessing", "ctypes", "cffi"),
    *("socket", "ssl", "http", "urllib", "ftplib", "smtplib", "requests", "httpx", "aiohttp", "huggingface_hub"),
    *("pickle", "marshal", "shelve", "dill", "joblib", "yaml"),
    *("base64", "binascii", "codecs", "zlib", "bz2", "lzma", "zipfile", "tarfile", "webbrowser"),
}
"""Programs, pip, the network, formats that run code when they are read, and what hides code in text."""

NOT_NAMED = re.compile(
    r"\bos\.(system|popen|exec\w*|spawn\w*|posix_spawn\w*|fork)\b|\btorch\.(load|hub|save)\b|\bsys\.modules\b"
)

IMPORTED_BY_NAME = {"svd_core/media/content_filter.py", "svd_core/__init__.py"}
"""The user's own content filter, and the package's own names, loaded when they are first asked for."""

STRANGE_TO_PACKS = ("install.py", "prestartup_script.py", "setup.py", "sitecustomize.py")
"""Run by ComfyUI or its manager at installation or start, or by Python itself."""


def shipped():
    yield ROOT / "__init__.py"
    for folder in SHIPPED[1:]:
        yield from (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)


SOURCES = [pytest.param(path, id=str(path.relative_to(ROOT))) for path in shipped() if path.suffix == ".py"]


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_only_kinds_of_files_that_a_pack_needs_are_published():
    sizes = {path: path.stat().st_size for path in shipped()}
    assert {path.suffix for path in sizes} <= KINDS
    assert max(sizes.values()) < LARGEST and sum(sizes.values()) < ALL
    assert not [path for path in sizes if path.name in STRANGE_TO_PACKS or path.is_symlink()]
    assert all((ROOT / name).is_file() for name in TEXTS)


@pytest.mark.parametrize("path", SOURCES)
def test_published_code_runs_no_text_and_no_program_and_reaches_no_network(path):
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in NOT_CALLED, f"line {node.lineno} calls {node.func.id}"
        for name in imported(node):
            assert name.split(".")[0] not in NOT_IMPORTED, f"line {node.lineno} imports {name}"
        if isinstance(node, ast.Attribute):
            assert not NOT_NAMED.fullmatch(ast.unparse(node)), f"line {node.lineno} uses {ast.unparse(node)}"
    if "import_module" in text:
        assert path.relative_to(ROOT).as_posix() in IMPORTED_BY_NAME


def imported(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []


@pytest.mark.parametrize("path", SOURCES)
def test_published_code_can_be_read(path):
    """Nothing is packed into long lines or long texts, or spelled with letters that look like others."""
    text = path.read_text(encoding="utf-8")
    assert max(map(len, text.splitlines()), default=0) <= 120
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            assert not re.search(r"[A-Za-z0-9+/=]{200}" if isinstance(node.value, str) else rb"\S{200}", node.value)
        if isinstance(node, ast.Name | ast.FunctionDef | ast.ClassDef):
            assert (node.id if isinstance(node, ast.Name) else node.name).isascii()


def test_the_fields_that_the_registry_reads(project):
    about, comfy = project["project"], project["tool"]["comfy"]
    assert re.fullmatch(r"[a-z][a-z0-9]*([-_.][a-z0-9]+)*", about["name"]) and len(about["name"]) < 100
    assert re.fullmatch(r"\d+\.\d+\.\d+", about["version"])
    assert about["description"] and about["requires-python"]
    assert (ROOT / about["license"]["file"]).is_file() and (ROOT / about["readme"]).is_file()
    assert about["dynamic"] == ["dependencies"], "what is installed is what requirements.txt says"
    assert re.fullmatch(r"[a-z0-9-]+", comfy["PublisherId"]) and comfy["DisplayName"]
    assert re.fullmatch(r">=\d+\.\d+\.\d+", comfy["requires-comfyui"])
    for address in (comfy["Icon"], comfy["Banner"], *about.get("urls", {}).values()):
        assert address == "" or address.startswith("https://")


def test_nothing_is_installed_from_elsewhere():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert all(re.fullmatch(r"[A-Za-z-]+", line) for line in lines if line and not line.startswith("#"))
