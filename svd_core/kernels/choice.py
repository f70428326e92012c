"""Which form of an operation runs: capability predicate -> one probe -> cached choice -> reference fallback.

The probe runs once for each operation, device, dtype and shape class, on the arguments of the first call that it could
serve. A kernel is taken where its error against float64 is at most twice that of the torch expression, and where it is
faster. Shape classes leave out the batch, so that joint and split guidance, or two sizes of a group, choose alike.
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

Form = Callable[..., Any]
"""An operation's reference or one of its kernels: the same arguments, and a tensor or a tuple of tensors."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LEAST_CAPABILITY = (8, 0)
REFERENCE = "reference"

TIMED_RUNS = 5
"""Runs of each form whose median counts, taken in turns after two that warm up."""

HOST_LEAD = 2_000_000
"""Cycles, about a millisecond, that a device is kept busy while the host asks for a run that is timed."""

WHOLE_DIGITS = 16
"""Distance, in units of a dtype's last digit, that two forms of one operation may have over a whole tensor: several
roundings in a row, and in float32 the TF32 of a host that allows it is beyond it, where torch is the faster anyway."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One fused operation. Calling it runs whichever form was chosen; the arguments are positional.

    `kernels` imports Triton and returns the candidates by name; `refusal` says in words why no kernel takes these
    arguments, or ""; `shape_class` is what a choice holds for; `sample` cuts the arguments down to what is cheap in
    float64; `in_place` is the reference in the memory of arguments that callers give away, for where no kernel was
    chosen and no gradients are recorded; `overwritten` which argument kernels then get as their `out`, too. The first
    argument is a tensor, whose dtype others share: all of them, or of the first `alike`. `slack` is how many of the
    dtype's last digits a kernel may be off beside twice torch's error. Class: rounding.
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
        # Torch's compiler fuses the plain expression itself, and cannot look into a probe.
        if torch.compiler.is_compiling() or not self.wanted(args[0]):
            return self.reference(*args)
        form = choices().form(self, args)
        if form is self.reference:
            return (self.in_place or form)(*args)
        return form(*args) if self.overwritten is None else form(*args, out=args[self.overwritten])

    def into(self, out: Tensor | None, *args: Any) -> Any:
        """As a call, for an operation whose forms take `out`: memory for their result or the first of them, which may
        be an argument's if its values lie in the same places."""
        form = choices().form(self, args) if self.wanted(args[0]) else self.reference
        return form(*args, out=out)

    def wanted(self, like: Tensor) -> bool:
        """Whether a kernel may run on such a tensor at all: quick, so that callers can ask before they gather weights.
        Never while gradients are recorded: kernels have no backward pass."""
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return False
        return not (choices().incapable(like.device) or torch.is_autocast_enabled(like.device.type))


@dataclass(frozen=True, slots=True)
class Choice:
    """`name` of the form that runs, "reference" or a kernel's, and why."""

    name: str
    form: Form
    reason: str


@dataclass(frozen=True, slots=True)
class _Key:
    operation: str
    device: torch.device
    dtype: torch.dtype
    shape_class: Hashable


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
    """Seconds that the device takes for one run, which it finds waiting: it is kept busy until the host has asked. An
    idle device would wait for each launch, and the form that the host asks for sooner would look the faster."""
    torch.cuda._sleep(HOST_LEAD)  # in no public form
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


class Choices:
    """What was chosen in this process. `incapable` and `seconds` are how to judge a device and to time a run on it."""

    def __init__(
        self,
        incapable: Callable[[torch.device], str] = incapable,
        seconds: Callable[[Callable[[], object]], float] = cuda_seconds,
    ) -> None:
        self.incapable = cache(incapable)
        self.made: dict[_Key, Choice] = {}
        self._seconds = seconds

    def form(self, operation: Operation, args: tuple[Any, ...]) -> Form:
        """What runs for these arguments; the probe's result where there was none."""
        if _unfit(args, operation.alike) or operation.refusal(*args):
            return operation.reference
        key = _Key(operation.name, args[0].device, args[0].dtype, operation.shape_class(*args))
        if key not in self.made:
            if _capturing(args[0].device):
                return operation.reference  # a probe waits for the device, which a graph's capture forbids
            self.made[key] = self._probe(operation, args)
        return _on_device(self.made[key], args[0].device)

    def _probe(self, operation: Operation, args: tuple[Any, ...]) -> Choice:
        """Anything that a kernel does wrong, from not compiling to being slow, is an answer. Want of memory is none."""
        with _current(args[0].device):
            try:
                right, wrong = {}, []
                for name, kernel in operation.kernels().items():
                    complaint = _complaint(operation, kernel, args)
                    right.update({} if complaint else {name: kernel})
                    wrong += [f"{name}: {complaint}"] if complaint else []
                if not right:
                    return Choice(REFERENCE, operation.reference, "; ".join(wrong))
                return self._fastest(operation, right, args)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # Triton's compilers raise what they like, and none of it may stop a render
                return Choice(REFERENCE, operation.reference, f"{type(error).__name__}: {_first_line(error)}")

    def _fastest(self, operation: Operation, kernels: Mapping[str, Form], args: tuple[Any, ...]) -> Choice:
        forms = {REFERENCE: operation.reference, **kernels}
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
    """The choices of this process."""
    return Choices()


def report() -> str:
    """What was chosen so far, and why, one line each; first what the devices of this machine allow."""
    count = torch.cuda.device_count()
    devices = [torch.device("cuda", index) for index in range(count)] or [torch.device("cpu")]
    lines = [f"{device}: {choices().incapable(device) or 'kernels where a probe agrees'}" for device in devices]
    for key, choice in choices().made.items():
        what = f"{key.operation} {key.shape_class} {str(key.dtype).removeprefix('torch.')} on {key.device}"
        lines.append(f"{what}: {choice.name} ({choice.reason})")
    return "\n".join(lines)


def _unfit(args: Iterable[Any], alike: int | None) -> bool:
    """What no kernel takes: an empty tensor, a dtype that none was written for, or tensors that do not go together."""
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    first = tensors[0]
    together = all(tensor.device == first.device for tensor in tensors)
    same = all(tensor.dtype == first.dtype for tensor in tensors[:alike])
    return not (together and same) or first.dtype not in DTYPES or first.numel() == 0


def error_of(operation: Operation, kernel: Form, args: tuple[Any, ...]) -> str:
    """What is wrong with a kernel's numbers, or "": its largest error against float64 may be twice that of the torch
    expression in the same dtype, and the operation's slack."""
    exact = list(_leaves(operation.reference(*map(_double, args))))
    plain, fused = (_errors(form(*args), exact) for form in (operation.reference, kernel))
    for torch_error, error, like in zip(plain, fused, exact, strict=True):
        slack = operation.slack * torch.finfo(args[0].dtype).eps * float(like.abs().max())
        if not error <= 2 * torch_error + slack:
            return f"error {error:.2e}, torch's is {torch_error:.2e}"
    return ""


def _complaint(operation: Operation, kernel: Form, args: tuple[Any, ...]) -> str:
    """What is wrong with a kernel, or "". One that raises leaves the choice to the others."""
    try:
        return _disagreement(operation, kernel, args)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # Triton's compilers raise what they like, and none of it may stop a render
        return f"{type(error).__name__}: {_first_line(error)}"


def _disagreement(operation: Operation, kernel: Form, args: tuple[Any, ...]) -> str:
    """`error_of` a sample; and what only large tensors show, such as an overflowing offset, by the distance of the
    whole result from the reference's, which for rounding alone is a few last digits."""
    if wrong := error_of(operation, kernel, operation.sample(*args)):
        return wrong
    bound = WHOLE_DIGITS * torch.finfo(args[0].dtype).eps
    far = [_distance(*pair) for pair in zip(_leaves(kernel(*args)), _leaves(operation.reference(*args)), strict=True)]
    return "" if max(far) <= bound else f"{max(far):.2e} from the reference on the whole tensor"


def _errors(result: Any, exact: Iterable[Tensor]) -> list[float]:
    """The largest absolute one of each tensor."""
    return [float((tensor.double() - true).abs().max()) for tensor, true in zip(_leaves(result), exact, strict=True)]


def _distance(one: Tensor, other: Tensor) -> float:
    """Relative, in the L2 norm."""
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
    """Triton launches on the current device, whatever its arguments say."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _on_device(choice: Choice, device: torch.device) -> Form:
    if choice.name == REFERENCE or device.type != "cuda" or device.index == torch.cuda.current_device():
        return choice.form

    def run(*args: Any, **out: Tensor) -> Any:
        with torch.cuda.device(device):
            return choice.form(*args, **out)

    return run
