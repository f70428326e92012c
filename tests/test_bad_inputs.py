"""The page of bad inputs says what the tests do."""

from pathlib import Path

from tools.bad_inputs import PAGE, PROMISED, Module, named_tests, page

ROOT = Path(__file__).resolve().parents[1]


def test_the_page_is_what_the_tests_say():
    assert PAGE.read_text(encoding="utf-8") == page(), "write it again: python -m tools.bad_inputs"


def test_every_test_that_the_page_names_is_there():
    named = named_tests()
    promised = named.pop("What was promised to be handled")
    assert sum(map(len, named.values())) > 200
    for file, tests in named.items():
        assert tests <= {test.name for test in Module.of(ROOT / file).tests()}, file
    assert promised == {f"test_{test}" for _, _, test in PROMISED}


def test_what_was_promised_is_among_the_rows():
    named = named_tests()
    for what, file, test in PROMISED:
        assert f"test_{test}" in named[f"tests/{file}"], what
