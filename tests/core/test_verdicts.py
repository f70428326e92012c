"""What the clock decided once, a recipe decides again: its clip keeps its bits though the clock changes its mind."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image
from synthetic import write_checkpoint

from svd_core.cli import main
from svd_core.kernels import choice
from svd_core.kernels.choice import Choices, Operation
from svd_core.media import read_recipe
from svd_core.model.cpu import probe
from svd_core.verdicts import Verdicts, machine, verdicts

CPU = torch.device("cpu")
X = torch.linspace(1, 2, 100)


@pytest.fixture(autouse=True)
def fresh():
    """No verdict from before, and none afterwards."""
    forget()
    yield
    forget()


def forget():
    verdicts().known.clear()
    verdicts().begin()


def clock(monkeypatch, seconds):
    monkeypatch.setattr(probe, "least_seconds", lambda *_: [seconds, 1.0])


def no_clock(monkeypatch):
    monkeypatch.setattr(probe, "least_seconds", lambda *_: pytest.fail("the recipe had settled it"))


def doubled(x):
    return 2 * x


def a_probe(route=torch.add):
    @probe.probed("{} doublings", "as sums")
    def chosen(dtype):
        return probe.replaces(lambda x: route(x, x), doubled, [X.to(dtype)], 1.0)

    return chosen


QUESTION = f"torch.float32 doublings on {machine(CPU)}"


@pytest.mark.parametrize("answer", ["as sums", "torch's own"])
def test_a_settled_question_asks_no_clock(monkeypatch, answer):
    no_clock(monkeypatch)
    verdicts().begin(((QUESTION, answer),))
    assert a_probe()(torch.float32) is (answer == "as sums")
    assert verdicts().recorded(9) == ((QUESTION, answer),)


def test_what_is_wrong_here_is_refused_whatever_a_recipe_says(monkeypatch):
    no_clock(monkeypatch)
    verdicts().begin(((QUESTION, "as sums"),))
    assert not a_probe(torch.mul)(torch.float32)
    assert verdicts().recorded(9) == ((QUESTION, "torch's own"),)


def test_an_answer_given_before_is_asked_for_again_where_a_recipe_says_otherwise(monkeypatch):
    chosen = a_probe()
    clock(monkeypatch, 3.0)
    assert not chosen(torch.float32)
    verdicts().begin(((QUESTION, "torch's own"),))
    assert not chosen(torch.float32)
    verdicts().begin(((QUESTION, "as sums"),))
    assert chosen(torch.float32)


def test_a_question_that_no_recipe_knows_is_timed(monkeypatch):
    clock(monkeypatch, 3.0)
    verdicts().begin(((f"torch.float32 doublings on {machine(CPU)} II", "as sums"),))
    assert not a_probe()(torch.float32)


def test_a_probe_within_a_probe_and_one_beside_it_have_answers_of_their_own():
    found = Verdicts()
    with ThreadPoolExecutor(1) as other, found.probing(True):
        with pytest.raises(ZeroDivisionError), found.probing(None):
            assert found.settled_here is None
            _ = 1 / 0
        assert found.settled_here is True
        assert not other.submit(lambda: found.in_probe).result()
    assert not found.in_probe


def test_an_answer_of_another_name_is_timed(monkeypatch):
    clock(monkeypatch, 3.0)
    verdicts().begin(((QUESTION, "as powers"),))
    assert not a_probe()(torch.float32)
    assert verdicts().recorded(9) == ((QUESTION, "torch's own"),)


def test_a_recipe_keeps_the_last_verdicts_and_those_of_the_one_before_it():
    found = Verdicts(used={"b": "2", "c": "3"}, settled={"a": "1", "b": "0"})
    assert found.recorded(9) == (("a", "1"), ("b", "2"), ("c", "3"))
    assert found.recorded(2) == (("b", "2"), ("c", "3"))


def test_a_clip_s_verdicts_are_those_that_it_used(monkeypatch):
    clock(monkeypatch, 0.5)
    inner = a_probe()
    outer = probe.probed("{} sums of doublings", "as sums")(lambda dtype: inner(dtype))
    assert outer(torch.float32)
    verdicts().begin()
    no_clock(monkeypatch)
    assert verdicts().recorded(9) == ()
    assert outer(torch.float32)
    assert outer(torch.float32)
    assert verdicts().recorded(9) == ((f"torch.float32 sums of {QUESTION.partition(' ')[2]}", "as sums"),)


# Kernels


def operation(**kernels):
    return Operation(
        "double",
        doubled,
        kernels=lambda: kernels,
        refusal=lambda x: "",
        shape_class=lambda x: x.ndim,
        sample=lambda x: (x,),
    )


@pytest.fixture
def choices(monkeypatch):
    """Kernels run on the CPU; each run of a form takes a second more than the one before it."""
    ticks = iter(range(1000))
    made = Choices(lambda device: "", lambda run: float(next(ticks)))
    monkeypatch.setattr(choice, "choices", lambda: made)
    return made


def name_of(choices):
    (made,) = choices.made.values()
    return made.name


@torch.inference_mode()
def test_a_recipe_chooses_among_kernels(choices):
    verdicts().begin(((f"double 1 float32 on {machine(CPU)}", "second"),))
    operation(first=lambda x: x + x, second=lambda x: x * 2)(X)
    assert name_of(choices) == "second"


@torch.inference_mode()
def test_a_recipe_that_says_otherwise_has_a_kernel_chosen_anew(choices):
    double = operation(one=lambda x: x + x, two=lambda x: x * 2)
    for settled in ("one", "two", "reference"):
        verdicts().begin(((f"double 1 float32 on {machine(CPU)}", settled),))
        double(X)
        assert name_of(choices) == settled
    verdicts().begin()
    double(X)
    assert verdicts().used == {f"double 1 float32 on {machine(CPU)}": "reference"}


@torch.inference_mode()
@pytest.mark.parametrize("settled", ["wrong", "gone"])
def test_a_kernel_that_is_wrong_or_gone_is_not_chosen_for_a_recipe(choices, settled):
    verdicts().begin(((f"double 1 float32 on {machine(CPU)}", settled),))
    operation(wrong=lambda x: x * 3)(X)
    assert name_of(choices) == "reference"
    assert verdicts().used == {f"double 1 float32 on {machine(CPU)}": "reference"}


# The command line


def rendered(folder, *flags):
    output = folder / f"{len(list(folder.iterdir()))}.webp"
    assert main(["animate", *flags, "--output", str(output), "--device", "cpu"]) == 0
    return output


@pytest.mark.parametrize("before", [0.1, 9.0])
def test_a_clip_made_again_has_its_bytes_though_the_clock_says_otherwise(tmp_path, monkeypatch, before):
    clock(monkeypatch, before)
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "still.png")
    places = (f"{tmp_path}/still.png", "--checkpoint", str(write_checkpoint(tmp_path / "tiny.safetensors")))
    first = rendered(tmp_path, *places, "--dtype", "bfloat16", "--steps", "2")
    recorded = read_recipe(first).verdicts
    assert recorded
    forget()
    no_clock(monkeypatch)
    again = rendered(tmp_path, "--recipe", str(first))
    assert read_recipe(again).verdicts == recorded
    assert again.read_bytes() == first.read_bytes()
