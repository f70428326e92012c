"""What the project says about itself in several places, said alike; and the ComfyUI that tests import."""

import ast
import re
from pathlib import Path

import pytest
from PIL import Image

import svd_core
from tools.fetch_comfyui import RELEASES, comfyui_paths

ROOT = Path(__file__).resolve().parents[1]


def requirements(file):
    """Names of the packages in a requirements file, spelled as the index does (PEP 503)."""
    lines = (line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    named = (re.match(r"[\w.-]+", line) for line in lines if line and not line.startswith("-"))
    return {re.sub(r"[-_.]+", "-", match[0]).lower() for match in named}


@pytest.fixture(scope="module")
def project():
    return (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_one_version(project):
    assert f'\nversion = "{svd_core.__version__}"\n' in project
    assert f"## [{svd_core.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_oldest_comfyui_tested_is_the_oldest_promised(project):
    assert f'requires-comfyui = ">={RELEASES[-1].comfyui}"' in project


def test_what_the_registry_leaves_out_is_named_from_the_root():
    """A bare `docs/` would leave out web/docs too."""
    lines = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert "/docs/" in patterns
    assert all(pattern.startswith("/") for pattern in patterns)
    served = {"nodes", "svd_core", "workflows", "subgraphs", "locales", "web"}
    assert not served & {pattern.strip("/") for pattern in patterns}
    assert all((ROOT / folder).is_dir() for folder in served)


def test_the_registrys_pictures_have_the_sizes_it_asks_for():
    with Image.open(ROOT / "docs" / "registry" / "icon.png") as icon:
        assert icon.width == icon.height <= 400
    with Image.open(ROOT / "docs" / "registry" / "banner.png") as banner:
        assert banner.width * 9 == banner.height * 21


def test_every_message_that_the_pages_explain_is_one_of_ours():
    pieces = "\n".join(piece for folder in ("svd_core", "nodes") for piece in literals(ROOT / folder))
    readme = (ROOT / "README.md").read_text(encoding="utf-8").split("## Troubleshooting")[1].split("\n## ")[0]
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = [message for text in (readme, page) for message in re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)]
    assert len(quoted) > 15
    for message in quoted:
        assert [part for part in message.split("...") if part.strip() not in pieces] == [], message


def literals(folder):
    """The fixed pieces of every text in a folder's Python files."""
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_comfyui_installs_every_package_that_the_pack_needs():
    for tree in comfyui_paths():
        assert requirements(ROOT / "requirements.txt") <= requirements(tree / "requirements.txt"), tree


def test_nothing_that_comfyui_installs_is_pinned():
    wanted = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert all(re.fullmatch(r"[\w-]+", line) for line in wanted if not line.startswith("#"))


def test_comfyui_imports_on_the_cpu_and_its_nodes_module_is_its_own(comfy, comfyui_path):
    import comfy.model_management
    import comfy.sd

    import nodes

    assert comfy.model_management.get_torch_device().type == "cpu"
    assert Path(nodes.__file__) == comfyui_path / "nodes.py"
    assert Path(comfy.sd.__file__).is_relative_to(comfyui_path)
