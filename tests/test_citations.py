"""Every `spec N` that the code cites is a section of docs/model.md, and nothing cites notes that are not here."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "docs" / "model.md"

CITED = re.compile(r"\b[Ss]pec\s+(\d+(?:\.\d+)?(?:,\s+\d+(?:\.\d+)?)*)")
"""As in "spec 4", "spec 2.1, 2.4" and "spec 11a"."""

HEADING = re.compile(r"^#+ (\d+(?:\.\d+)?) ", re.MULTILINE)
ABSENT = re.compile(r"performance[ -]notes", re.IGNORECASE)
"""Working notes that are not in the repository. Written so that this file does not match."""

TEXTS = {".py", ".md", ".toml", ".json", ".txt", ".sh", ""}
UNTRACKED = {"output", "build", "__pycache__"}


def files(folder: Path = ROOT) -> Iterator[Path]:
    """The repository's text files; hidden and generated folders are left out."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith(".") and path.name not in UNTRACKED:
            yield from files(path)
        elif path.is_file() and path.suffix in TEXTS:
            yield path


def cited(text: str) -> set[str]:
    """The section numbers that a text cites."""
    return {number for found in CITED.finditer(text) for number in re.split(r",\s+", found[1])}


def sections() -> list[str]:
    return HEADING.findall(MODEL.read_text(encoding="utf-8"))


def test_citations_are_read_in_every_form() -> None:
    text = "(spec 4) (spec 2.1, 2.4) Spec 11a, spec 11 (d) (spec 0, row 13) Spec 14, test 3. specify 9, spec\n    8.1"
    assert cited(text) == {"4", "2.1", "2.4", "11", "0", "14", "8.1"}


def test_every_cited_section_is_in_the_model_page() -> None:
    known = set(sections())
    pages = {path: cited(path.read_text(encoding="utf-8")) for path in files() if path.suffix == ".py"}
    assert sum(map(len, pages.values())) > 50
    for path, numbers in pages.items():
        lacking = sorted(numbers - known)
        assert not lacking, f"{path.relative_to(ROOT)} cites spec {', '.join(lacking)}: no such heading in {MODEL.name}"


def test_no_section_is_there_twice() -> None:
    numbers = sections()
    assert len(numbers) == len(set(numbers))


def test_nothing_cites_notes_outside_the_repository() -> None:
    citing = [path.relative_to(ROOT) for path in files() if ABSENT.search(path.read_text(encoding="utf-8"))]
    assert not citing, f"{citing[0]} cites notes that a reader does not have: give the reason, or a date in docs/LOG.md"
