"""The flags of every command. Quick to import, so that `--help` is fast; torch is imported only to run a command."""

from __future__ import annotations

import argparse
import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from typing import Any, NoReturn, get_args

from .. import __version__
from ..config import VARIANTS
from ..errors import InputError
from ..recipe import DType
from ..settings import AttentionName, Curve, Fit, Schedule, WeightsName
from .notes import no_output

MAX_WORKERS = 1024
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class Parser(ArgumentParser):
    """Reports a bad flag like any other bad input: in one line, without usage text. Abbreviated flags are rejected,
    because a new flag could change their meaning."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}: see {self.prog} --help")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Argparse's own drops an error of writing, which help that is longer than a buffer meets at once."""
        try:
            print(message, end="", file=file)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise no_output(error) from error


def parser() -> ArgumentParser:
    """The argument parser. Flags that were not given are absent from its namespace; `run` is the command to call with
    the namespace."""
    top = Parser(prog="python -m svd_core", description="Turn a still picture into a clip with Stable Video Diffusion.")
    top.add_argument("--version", action="version", version=f"svd_core {__version__}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_animate(commands)
    _add_inspect(commands)
    _add_decode(commands)
    _add_plan(commands)
    _add_watermark(commands)
    _add_batch(commands)
    return top


def _add_animate(commands: argparse._SubParsersAction) -> None:
    command = _command(commands, "animate", "make a clip from a picture", _animate)
    command.add_argument("image", nargs="?", type=_path, metavar="IMAGE", help="PNG, JPEG, WebP, ...: the first frame")
    _add_places(command)
    command.add_argument(
        "--recipe", type=_path, metavar="FILE", help="render the clip in FILE again, to the same bytes"
    )
    _flag(
        command,
        "--ignore-hash",
        "with --recipe: go on though the picture, the checkpoint or another file is a different one",
        action="store_true",
    )
    _flag(command, "--memory", "most of the device's memory to use, such as 6GiB; changes no pixel", _bytes, "SIZE")
    text = "one pass of guidance in each of two processes: torchrun --nproc-per-node 2 -m svd_core animate ..."
    _flag(command, "--split-guidance", text, action="store_true")
    command.add_argument(
        "--save-latents", type=_output, metavar="FILE", help="also write the latents (.safetensors, for decode)"
    )
    _add_picture_flags(command.add_argument_group("picture"))
    _add_motion_flags(command.add_argument_group("clip"))
    controls = command.add_argument_group("controls")
    _add_picture_controls(controls)
    _add_controls(controls)
    _add_sampling_flags(command.add_argument_group("sampling"))
    _add_provenance_flags(command)
    _add_machine_flags(command)
    text = "of the UNet: sage (8-bit, approximate) and flash3 need their package (default: auto, torch's own)"
    _flag(command, "--attention", text, choices=get_args(AttentionName))
    text = (
        "of the UNet, quantised: int8 takes half of the memory and longer, fp8 multiplies in 8 bits, for NVIDIA GPUs "
        "from Ada on (default: whole)"
    )
    _flag(command, "--weights", text, choices=get_args(WeightsName))


def _add_batch(commands: argparse._SubParsersAction) -> None:
    command = _command(commands, "batch", "make clips of many pictures, through Ray", _batch)
    command.add_argument("pictures", type=_path, metavar="FOLDER", help="of pictures, or a .txt file naming one a line")
    command.add_argument(
        "--output", required=True, type=_output, metavar="FOLDER", help="for the clips; those that are there stay"
    )
    _add_checkpoint_flag(command)
    _flag(command, "--format", "of the clips (default: mp4)", choices=("mp4", "webm", "webp", "gif"))
    _flag(command, "--workers", "models at work (default: one a GPU, or one)", _count, "N")
    _flag(command, "--retries", "for a picture whose worker stopped (default: 2)", int, "N")
    _flag(command, "--address", "of a Ray cluster that sees the same files (default: this machine)", metavar="HOST")
    _flag(command, "--memory", "most of a device's memory to use, such as 6GiB; changes no pixel", _bytes, "SIZE")
    _add_picture_flags(command.add_argument_group("picture"))
    _add_motion_flags(command.add_argument_group("clip"))
    _add_controls(command.add_argument_group("controls"))
    _add_sampling_flags(command.add_argument_group("sampling"))
    _add_provenance_flags(command)
    _add_machine_flags(command)


def _add_inspect(commands: argparse._SubParsersAction) -> None:
    command = _command(commands, "inspect", "say what a checkpoint holds", _inspect)
    command.add_argument("checkpoint", type=_path, metavar="FILE", help=".safetensors file or diffusers folder")


def _add_decode(commands: argparse._SubParsersAction) -> None:
    command = _command(commands, "decode", "make a clip from saved latents", _decode)
    command.add_argument("latents", type=_path, metavar="LATENTS", help="file written by animate --save-latents")
    _add_places(command)
    _add_playback_flag(command, "as the latents' recipe says, else 7")
    _add_provenance_flags(command)
    _add_machine_flags(command)


def _add_plan(commands: argparse._SubParsersAction) -> None:
    command = _command(commands, "plan", "say how a clip would fit in a GPU's memory", _plan)
    command.add_argument("--memory", required=True, type=_bytes, metavar="SIZE", help="of the device, such as 6GiB")
    command.add_argument("--checkpoint", type=_path, metavar="FILE", help=".safetensors file or diffusers folder")
    _flag(command, "--variant", "a released model instead of a file (default: svd_xt)", choices=tuple(VARIANTS))
    _flag(command, "--frames", "length of the clip (default: the model's)", int, "N")
    _flag(command, "--size", "of the clip (default: 1024x576)", _size, "WxH")
    _flag(command, "--dtype", "of the networks (default: float16)", choices=get_args(DType))
    controls = command.add_argument_group("controls")
    _add_end_flag(controls)
    _add_length_controls(controls)


def _add_watermark(commands: argparse._SubParsersAction) -> None:
    command = _command(commands, "watermark", "say whether a clip holds the invisible watermark", _watermark)
    command.add_argument("clip", type=_path, metavar="CLIP", help="movie, animation, folder of PNGs, or one PNG")


def _command(commands: argparse._SubParsersAction, name: str, text: str, run: object) -> ArgumentParser:
    command = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", argument_default=argparse.SUPPRESS
    )
    command.set_defaults(run=run)
    return command


def _add_checkpoint_flag(command: ArgumentParser) -> None:
    text = ".safetensors file or diffusers folder (animate and batch without one take the demo model)"
    command.add_argument("--checkpoint", type=_path, metavar="FILE", help=text)


def _add_places(command: ArgumentParser) -> None:
    _add_checkpoint_flag(command)
    where = "clip.mp4, .webm, .webp, .gif, or a folder of PNGs ending in /"
    command.add_argument("--output", required=True, type=_output, metavar="PATH", help=where)


def _add_picture_flags(group: argparse._ArgumentGroup) -> None:
    _flag(group, "--size", "of the clip, in multiples of 64 (default: 1024x576 turned to the picture)", _size, "WxH")
    _flag(group, "--fit", "how the picture gets that size (default: crop)", choices=get_args(Fit))
    _flag(group, "--background", "under transparency and beside a padded picture, #rrggbb", _colour, "COLOUR")


def _add_motion_flags(group: argparse._ArgumentGroup) -> None:
    _flag(group, "--frames", "length of the clip (default: the model's, 14 or 25)", int, "N")
    _flag(group, "--fps", "speed the motion is imagined at (default: 7)", int, "N")
    _add_playback_flag(group, "--fps")
    _flag(group, "--motion-bucket", "0 to 1023, higher moves more (default: 127)", int, "N")
    _flag(group, "--augmentation", "0 to 10: noise on the still, whose pixels are -1 to 1 (default: 0.02)", float, "X")
    _flag(group, "--seed", "of all noise (default: 0)", int, "N")


def _add_end_flag(group: argparse._ArgumentGroup) -> None:
    _flag(group, "--end", "picture to end on; takes twice as long", _path, "PICTURE")


def _add_picture_controls(group: argparse._ArgumentGroup) -> None:
    _add_end_flag(group)
    text = "painted on the picture: white moves freely, black keeps its pixels, grey moves little"
    _flag(group, "--brush", text, _path, "PICTURE")
    _flag(group, "--feather", "pixels over which a --brush fades in (default: 4, at most 256)", int, "N")
    text = "map of the picture, white is near: near things pass the camera faster"
    _flag(group, "--depth", text, _path, "PICTURE")
    _flag(group, "--drag", "painted on the picture: what is white travels by the next three", _path, "PICTURE")
    _flag(group, "--drag-by", "its way right and down, -1 to 1 of the picture", float, ("X", "Y"), nargs=2)
    _flag(group, "--drag-scale", "0.25 to 4: how much larger it is at the end", float, "X")
    _flag(group, "--drag-turn", "-360 to 360: degrees that it turns clockwise", float, "DEGREES")
    text = "clip of the same size to go on from, with --window; its last frame begins the new one"
    _flag(group, "--continue", text, _path, "CLIP", dest="continued")


def _add_length_controls(group: argparse._ArgumentGroup) -> None:
    text = "come back to the picture, without a cut: one frame less, and twice as long to make"
    _flag(group, "--loop", text, action="store_true")
    text = "reach the end of --end or --loop by steps from either side in turn, not by blending"
    _flag(group, "--sequential", text, action="store_true")
    _flag(group, "--window", "make a longer --frames in windows of N frames; 0 is the model's length", int, "N")
    text = "blend the windows where they overlap, at every step, instead of making one after the other"
    _flag(group, "--fused", text, action="store_true")
    _flag(group, "--overlap", "frames that --fused windows share (default: 0, half a window)", int, "N")


def _add_controls(group: argparse._ArgumentGroup) -> None:
    _add_length_controls(group)
    _flag(group, "--colour-hold", "0 to 1: how firmly windows keep the first colours (default: 1)", float, "X")
    _flag(group, "--unstick", "0 to 1: against clips that do not move, 0.5 is usual (default: 0)", float, "X")
    _add_camera_flags(group)
    text = "over the frames, in place of {}: position:value,..., positions 0 to 1"
    for name in ("--motion-bucket", "--augmentation"):
        _flag(group, f"{name}-points", text.format(name), _points, "LIST")


def _add_camera_flags(group: argparse._ArgumentGroup) -> None:
    text = "move the camera right and down, -1 to 1: 0.2 0 goes a fifth of the picture's width to the right"
    _flag(group, "--pan", text, float, ("X", "Y"), nargs=2)
    _flag(group, "--zoom", "0.25 to 4: how much closer the camera is at the end, 1.2 is usual", float, "X")
    _flag(group, "--roll", "-180 to 180: degrees that the camera turns clockwise", float, "DEGREES")
    _flag(group, "--ease", "start and end the way of the camera, or of what is dragged, gently", action="store_true")


def _add_sampling_flags(group: argparse._ArgumentGroup) -> None:
    _flag(group, "--steps", "noise levels to go through (default: the model's, 25 or 30)", int, "N")
    _flag(group, "--min-guidance", "guidance at the curve's low end (default: the model's)", float, "X")
    _flag(group, "--max-guidance", "guidance at the curve's high end (default: the model's)", float, "X")
    _flag(group, "--guidance-curve", "over the frames (default: linear)", choices=get_args(Curve))
    _flag(group, "--guidance-points", "a curve of your own: position:value,..., positions 0 to 1", _points, "LIST")
    _flag(
        group,
        "--guidance-interval",
        "approximate: guide only between these noise levels",
        float,
        ("LOW", "HIGH"),
        nargs=2,
    )
    _flag(group, "--schedule", "of the noise levels (default: edm)", choices=get_args(Schedule))
    _flag(group, "--sigmas", "noise levels of your own, falling to 0: 700,50,...,0", _numbers, "LIST")
    _flag(group, "--sampler", "euler, heun, euler_ancestral, dpmpp_2m, ... (default: euler)", metavar="NAME")
    _flag(group, "--churn", "noise added again at each step by euler and heun (default: 0)", float, "X")
    text = "approximate: keep deep features while the first block changes by less, such as 0.1 (default: 0, exact)"
    _flag(group, "--reuse", text, float, "THRESHOLD")


def _add_playback_flag(group: argparse._ActionsContainer, default: str) -> None:
    _flag(group, "--playback-fps", f"speed the file plays at (default: {default})", int, "N")


def _add_provenance_flags(command: ArgumentParser) -> None:
    group = command.add_argument_group("provenance")
    text = "leave out the invisible watermark (it needs the package invisible-watermark, and 256x256)"
    _flag(group, "--no-watermark", text, action="store_true")
    _flag(group, "--content-filter", "a function that refuses pictures and clips", metavar="MODULE:FUNCTION")


def _add_machine_flags(command: ArgumentParser) -> None:
    group = command.add_argument_group("machine")
    _flag(group, "--device", "cpu, cuda, cuda:1, mps (default: cuda where there is one, else cpu)", metavar="NAME")
    text = "of the networks (default: float32; for latents, what their recipe says)"
    _flag(group, "--dtype", text, choices=get_args(DType))
    _flag(group, "--chunk", "frames decoded at a time; changes memory, never pixels", int, "N")
    _flag(group, "--budget", "memory for decoding, such as 2GiB; changes memory, never pixels", _bytes, "SIZE")
    _flag(group, "--variant", "which released model a file is that does not say so", choices=tuple(VARIANTS))


def _flag(
    group: argparse._ActionsContainer,
    name: str,
    text: str,
    kind: object = None,
    metavar: str | tuple[str, str] | None = None,
    **options: object,
) -> None:
    extras = {"type": kind, "metavar": metavar}
    group.add_argument(name, help=text, **{key: value for key, value in extras.items() if value}, **options)


def _animate(args: Namespace) -> None:
    from .commands import animate

    animate(args)


def _inspect(args: Namespace) -> None:
    from .commands import inspect

    inspect(args)


def _decode(args: Namespace) -> None:
    from .commands import decode

    decode(args)


def _plan(args: Namespace) -> None:
    from .commands import plan

    plan(args)


def _watermark(args: Namespace) -> None:
    from .provenance import watermark

    watermark(args)


def _batch(args: Namespace) -> None:
    from .batch import batch

    batch(args)


def _path(text: str) -> str:
    """A path that is not empty; an empty one (from a script's unset variable) would mean the current folder."""
    if not text:
        raise ArgumentTypeError("the path is empty: give the name of a file or folder")
    return text


def _output(text: str) -> str:
    """A path to write to. "-" is refused: it usually means standard output, which takes no clip."""
    if text == "-":
        raise ArgumentTypeError("standard output (-) takes no clip: give the name of a file or folder, or ./- for that")
    return _path(text)


def _count(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= MAX_WORKERS):
        raise ArgumentTypeError(f"{text!r} is not a whole number of 1 to {MAX_WORKERS}")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,9})[xX](\d{1,9})", text)
    if not found:
        raise ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, such as 1024x576")
    return int(found[1]), int(found[2])


def _colour(text: str) -> tuple[int, ...]:
    found = re.fullmatch(r"#?([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})", text)
    if not found:
        raise ArgumentTypeError(f"{text!r} is not a colour of six hexadecimal digits, such as #ffffff")
    return tuple(int(part, 16) for part in found.groups())


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not numbers with commas between, such as 700,50,5,0") from None


def _points(text: str) -> tuple[tuple[float, ...], ...]:
    points = tuple(_numbers(point.replace(":", ",")) for point in text.split(","))
    if any(len(point) != 2 for point in points):
        raise ArgumentTypeError(f"{text!r} is not position:value pairs, such as 0:1,0.5:3,1:1")
    return points


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?) ?([kKmMgG][iI]?[bB]|)", text)
    if not found:
        raise ArgumentTypeError(f"{text!r} is not a size in bytes, such as 2GiB or 800MB")
    return int(float(found[1]) * _UNITS[found[2].upper()])
