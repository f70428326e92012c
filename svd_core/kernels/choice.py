"""Choice of the form of an operation: capability predicate -> one probe -> cached choice -> reference fallback.

The probe runs once for each operation, device, dtype and shape class, on the arguments of the first call that a kernel
could serve. A kernel is chosen if its error against float64 is at most twice that of the torch expression, and if it is
faster, or the recipe of an earlier clip chose it. Shape classes exclude the batch, so that joint and split guidance, or
two sizes of a group, choose alike.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..verdicts import machine, verdicts
from .gradients import needs_gradient

Form = Callable[..., Any]
"""An operation's reference or one of its kernels: same arguments, returning a tensor or a tuple of tensors."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LEAST_CAPABILITY = (8, 0)
REFERENCE = "reference"

TIMED_RUNS = 5
"""Timed runs of each form, interleaved, after two for warm-up; their median counts."""

HOST_LEAD = 2_000_000
"""Cycles, about a millisecond, for which a device is kept busy while the host queues a timed run."""

WHOLE_DIGITS = 16
"""Largest relative distance, in a dtype's eps, between two forms over a whole tensor: enough for several roundings in a
row. In float32, a host that allows TF32 exceeds it, but torch is faster there anyway."""


@dataclass(frozen=True, slots=True)
class Operation:
    """A fused operation. Calling it runs the chosen form; the arguments are positional.

    `kernels` imports Triton and returns the candidates by name; `refusal` says why no kernel takes these arguments, or
    ""; `shape_class` is the key that a choice holds for; `sample` reduces the arguments to what is cheap in float64;
    `in_place` is the reference reusing the memory of arguments that callers give away, for when no kernel was chosen
    and no argument needs a gradient; `overwritten` is the index of the argument that kernels then also get as `out`.
    The first argument is a tensor; all tensors, or the first `alike`, share its dtype. `slack` is the error, in eps,
    that a kernel may have on top of twice torch's. Class: rounding.
    """

    name: str
    reference: Form
    kernels: Callable[[], Mapping[str, Form]]
    refusal: Callable[..., str]
    shape_class: Callable[..., Hashable]
    sample: Callable[..., tuple[Any, ...]]
    in_place: Form | None = None
    overwritten: int | None = None
    alike: int | None = None
    slack: float = 0.25

    def __call__(self, *args: Any) -> Any:
        # Torch's compiler fuses the plain expression itself, and cannot trace a probe.
        if torch.compiler.is_compiling() or not self.wanted(*args):
            return self.reference(*args)
        form = choices().form(self, args)
        if form is self.reference:
            return (self.in_place or form)(*args)
        return form(*args) if self.overwritten is None else form(*args, out=args[self.overwritten])

    def into(self, out: Tensor | None, *args: Any) -> Any:
        """Like a call, for an operation whose forms take `out`: memory for their (first) result, which may be an
        argument with the same layout."""
        form = choices().form(self, args) if self.wanted(*args) else self.reference
        return form(*args, out=out)

    def wanted(self, like: Tensor, *others: Any) -> bool:
        """Whether a kernel may run on such a tensor, beside other arguments, at all; cheap, so that callers can ask
        before they gather weights. False if any of them needs a gradient: kernels have no backward pass."""
        if torch.compiler.is_compiling() or needs_gradient(like, *others):
            return False
        return not (choices().incapable(like.device) or torch.is_autocast_enabled(like.device.type))


@dataclass(frozen=True, slots=True)
class Choice:
    """The form that runs, its name, "reference" or a kernel's, and why."""

    name: str
    form: Form
    reason: str


@dataclass(frozen=True, slots=True)
class _Key:
    operation: str
    device: torch.device
    dtype: torch.dtype
    shape_class: Hashable

    def __str__(self) -> str:
        return f"{self.operation} {self.shape_class} {str(self.dtype).removeprefix('torch.')}"

    @property
    def question(self) -> str:
        """What is asked, as `verdicts` know it."""
        return f"{self} on {machine(self.device)}"


def incapable(device: torch.device) -> str:
    """Why no kernel runs on a device, or ""."""
    if device.type != "cuda":
        return f"{device.type} is no CUDA device"
    if torch.version.hip:
        return "the kernels are for NVIDIA devices"
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        return f"compute capability {capability[0]}.{capability[1]} is below {LEAST_CAPABILITY[0]}.0"
    return "" if importlib.util.find_spec("triton") else "triton is not installed"


def cuda_seconds(run: Callable[[], object]) -> float:
    """Seconds that the device takes for one run. The device is kept busy until the host has queued the run: an idle one
    would wait for each launch, and the form that launches sooner would look faster."""
    torch.cuda._sleep(HOST_LEAD)  # not a public API
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


class Choices:
    """The choices of a process. `incapable` judges a device, `seconds` times a run on it."""

    def __init__(
        self,
        incapable: Callable[[torch.device], str] = incapable,
        seconds: Callable[[Callable[[], object]], float] = cuda_seconds,
    ) -> None:
        self.incapable = cache(incapable)
        self.made: dict[_Key, Choice] = {}
        self._seconds = seconds

    def form(self, operation: Operation, args: tuple[Any, ...]) -> Form:
        """The form to run for these arguments, probed if there is no choice yet."""
        if _unfit(args, operation.alike) or operation.refusal(*args):
            return operation.reference
        key = _Key(operation.name, args[0].device, args[0].dtype, operation.shape_class(*args))
        for_this_clip = verdicts().made
        if (self, key) not in for_this_clip:
            if key not in self.made and _capturing(args[0].device):
                return operation.reference  # a probe synchronises the device, which graph capture forbids
            for_this_clip[self, key] = self._chosen(key, operation, args)
        return _on_device(for_this_clip[self, key], args[0].device)

    def _chosen(self, key: _Key, operation: Operation, args: tuple[Any, ...]) -> Choice:
        """The choice made before, unless a recipe says otherwise, or a new one."""
        if key not in self.made or verdicts().answer(key.question) != self.made[key].name:
            self.made[key] = self._probe(operation, args, key.question)
        verdicts().known[key.question] = verdicts().used[key.question] = self.made[key].name
        return self.made[key]

    def _probe(self, operation: Operation, args: tuple[Any, ...], question: str) -> Choice:
        """Any fault of a kernel, from not compiling to being slow, only rules it out; running out of memory is
        raised."""
        with _current(args[0].device):
            try:
                right, wrong = {}, []
                for name, kernel in operation.kernels().items():
                    complaint = _complaint(operation, kernel, args)
                    right.update({} if complaint else {name: kernel})
                    wrong += [f"{name}: {complaint}"] if complaint else []
                if not right:
                    return Choice(REFERENCE, operation.reference, "; ".join(wrong))
                forms = {REFERENCE: operation.reference, **right}
                settled = verdicts().settled.get(question)
                if settled in forms:
                    return Choice(settled, forms[settled], "settled by a recipe")
                return self._fastest(forms, args)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # Triton's compilers may raise anything, and none of it may stop a render
                return Choice(REFERENCE, operation.reference, f"{type(error).__name__}: {_first_line(error)}")

    def _fastest(self, forms: Mapping[str, Form], args: tuple[Any, ...]) -> Choice:
        rounds = [
            {name: self._seconds(lambda form=form: form(*args)) for name, form in forms.items()}
            for _ in range(2 + TIMED_RUNS)
        ]
        medians = {name: statistics.median(each[name] for each in rounds[2:]) for name in forms}
        name = min(medians, key=medians.__getitem__)
        others = ", ".join(f"{other} {seconds * 1e3:.3f} ms" for other, seconds in medians.items() if other != name)
        return Choice(name, forms[name], f"{medians[name] * 1e3:.3f} ms, {others}")


@cache
def choices() -> Choices:
    """The choices of this process, a singleton."""
    return Choices()


def report() -> str:
    """What the devices of this machine allow, then each choice so far and its reason, one per line."""
    count = torch.cuda.device_count()
    devices = [torch.device("cuda", index) for index in range(count)] or [torch.device("cpu")]
    lines = [f"{device}: {choices().incapable(device) or 'kernels where a probe agrees'}" for device in devices]
    for key, choice in choices().made.items():
        lines.append(f"{key} on {key.device}: {choice.name} ({choice.reason})")
    return "\n".join(lines)


def _unfit(args: Iterable[Any], alike: int | None) -> bool:
    """Whether no kernel takes the arguments: an empty tensor, an unsupported dtype, or tensors of mixed devices or
    dtypes."""
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    first = tensors[0]
    together = all(tensor.device == first.device for tensor in tensors)
    same = all(tensor.dtype == first.dtype for tensor in tensors[:alike])
    return not (together and same) or first.dtype not in DTYPES or first.numel() == 0


def error_of(operation: Operation, kernel: Form, args: tuple[Any, ...]) -> str:
    """Why a kernel's numbers are unacceptable, or "": its largest error against float64 may be twice that of the torch
    expression in the same dtype, plus the operation's slack."""
    exact = list(_leaves(operation.reference(*map(_double, args))))
    plain, fused = (_errors(form(*args), exact) for form in (operation.reference, kernel))
    for torch_error, error, like in zip(plain, fused, exact, strict=True):
        slack = operation.slack * torch.finfo(args[0].dtype).eps * float(like.abs().max())
        if not error <= 2 * torch_error + slack:
            return f"error {error:.2e}, torch's is {torch_error:.2e}"
    return ""


def _complaint(operation: Operation, kernel: Form, args: tuple[Any, ...]) -> str:
    """What is wrong with a kernel, or "". An exception rules out only the kernel that raised it."""
    try:
        return _disagreement(operation, kernel, args)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # Triton's compilers may raise anything, and none of it may stop a render
        return f"{type(error).__name__}: {_first_line(error)}"


def _disagreement(operation: Operation, kernel: Form, args: tuple[Any, ...]) -> str:
    """`error_of` a sample, then the whole result's distance from the reference's: for rounding alone it is a few eps,
    and errors such as an overflowing offset show only in large tensors."""
    if wrong := error_of(operation, kernel, operation.sample(*args)):
        return wrong
    bound = WHOLE_DIGITS * torch.finfo(args[0].dtype).eps
    far = [_distance(*pair) for pair in zip(_leaves(kernel(*args)), _leaves(operation.reference(*args)), strict=True)]
    return "" if max(far) <= bound else f"{max(far):.2e} from the reference on the whole tensor"


def _errors(result: Any, exact: Iterable[Tensor]) -> list[float]:
    """The largest absolute error of each tensor."""
    return [float((tensor.double() - true).abs().max()) for tensor, true in zip(_leaves(result), exact, strict=True)]


def _distance(one: Tensor, other: Tensor) -> float:
    """Relative distance in the L2 norm."""
    norm = torch.linalg.vector_norm
    size = norm(other, dtype=torch.float32).clamp_min(torch.finfo(torch.float32).tiny)
    return float(norm(one - other, dtype=torch.float32) / size)


def _leaves(result: Any) -> Iterator[Tensor]:
    yield from (result,) if isinstance(result, Tensor) else result


def _double(arg: Any) -> Any:
    return arg.double() if isinstance(arg, Tensor) else arg


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0]


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _current(device: torch.device) -> AbstractContextManager[object]:
    """Context that makes the device current: Triton launches there, whatever its arguments' device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _on_device(choice: Choice, device: torch.device) -> Form:
    if choice.name == REFERENCE or device.type != "cuda" or device.index == torch.cuda.current_device():
        return choice.form

    def run(*args: Any, **out: Tensor) -> Any:
        with torch.cuda.device(device):
            return choice.form(*args, **out)

    return run
