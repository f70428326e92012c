"""The command line: `python -m training autoencoder | temporal | video | begin | export | evaluate | lora | recipe`.

Under torchrun the three stages and lora run in several processes. Exit codes: 0 done, 2 unusable input (with one line
on stderr), 130 interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from PIL import Image

from svd_core.cli import UNUSABLE, end_with, ready_output
from svd_core.cli.flags import Parser
from svd_core.demo import DEMO_MODEL
from svd_core.errors import InputError, StableVideoError
from svd_core.loading import load_checkpoint
from svd_core.media import replacing

from .begin import begin_from
from .checkpoint import make_folder
from .data import Skipped, open_folder, open_source
from .distributed import Group, process_group
from .evaluate import FULL, QUICK, contact_sheet, evaluate_files, frame_decoder, save_figures, sheet_rows
from .export import MEBIBYTE, SHIPPED_LIMIT, export, export_frame_decoder
from .loop import Machine, Run
from .lora import DTYPES, Layers, LoRAConfig, train_lora, with_dtype
from .recipe import DEMO, Recipe, read_recipe, with_settings
from .stages import STAGES

FRAME_DECODER = Path(__file__).with_name("demo") / "frame_decoder.safetensors"

_LORA_MEMORY = """\
memory, counted for the released svd in bfloat16 with --rank 16 and --layers both (training.memory):
  14 frames of 1024x576  10.9 GiB     25 frames of 1024x576  16.0 GiB     14 frames of 576x320  6.4 GiB
  14 frames of 1024x576 with --no-checkpointing  49.3 GiB
and some 3 GiB for what is not counted, so all but the last fit a card of 24 GB. A step of 14 frames of 1024x576 is 129
TFLOP: 4.6 s on a card of 70 TFLOP/s kept busy to 40 %, or 80 minutes for 1,000 steps; 25 frames take 1.8 times as long.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. `argv` excludes the program's name; None takes the process's own."""
    ready_output()
    try:
        args = parser().parse_args(argv)
        args.run(args)
    except StableVideoError as error:
        return end_with(f"error: {error}", UNUSABLE)
    except KeyboardInterrupt as stopped:
        return end_with(": ".join(["interrupted", *map(str, stopped.args)]), 130)
    return 0


def parser() -> ArgumentParser:
    """The parser of all commands; the namespace's `run` is the function to call with it."""
    top = Parser(prog="python -m training", description="Train a video model, or a LoRA for a released one.")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    helps = {
        "autoencoder": "stage 1: encoder and image decoder",
        "temporal": "stage 2: the decoder across frames",
        "video": "stage 3: the UNet and the image encoder",
    }
    for name, text in helps.items():
        _add_stage(commands, name, text)
    _add_begin(commands)
    _add_export(commands)
    _add_evaluate(commands)
    _add_lora(commands)
    _add_recipe_flags(_command(commands, "recipe", "print the recipe as JSON", _print_recipe))
    return top


def _command(
    commands: argparse._SubParsersAction, name: str, text: str, run: object, epilog: str = ""
) -> ArgumentParser:
    command = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=epilog,
        formatter_class=RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    return command


def _add_stage(commands: argparse._SubParsersAction, name: str, text: str) -> None:
    command = _command(commands, name, text, _train_stage)
    command.set_defaults(stage=name)
    command.add_argument("--folder", type=Path, required=True, metavar="FOLDER", help="of all stages")
    _add_recipe_flags(command)
    _add_machine_flags(command)


def _add_recipe_flags(command: ArgumentParser) -> None:
    command.add_argument("--recipe", metavar="FILE", help="JSON with all fields (default: the demo model's)")
    _add_settings_flag(command, "video.optimisation.steps=200")


def _add_settings_flag(command: ArgumentParser, example: str) -> None:
    text = f"change one value, such as {example}; may be repeated"
    command.add_argument("--set", dest="settings", action="append", default=[], metavar="FIELD=VALUE", help=text)


def _add_machine_flags(command: ArgumentParser) -> None:
    group = command.add_argument_group("machine")
    group.add_argument("--device", default="cpu", metavar="NAME", help="cpu or cuda (default: cpu)")
    group.add_argument("--workers", type=int, default=0, metavar="N", help="processes that draw ahead (default: 0)")
    group.add_argument("--save-every", type=int, default=100, metavar="N", help="steps between states (default: 100)")
    group.add_argument("--stop-after", type=int, metavar="N", help="end at this step, to go on another day")


def _add_export(commands: argparse._SubParsersAction) -> None:
    command = _command(commands, "export", "write the trained model as one file", _export)
    command.add_argument("--folder", type=Path, required=True, metavar="FOLDER", help="of all stages")
    command.add_argument("--output", type=Path, required=True, metavar="FILE", help="such as demo.safetensors")
    limit = SHIPPED_LIMIT // MEBIBYTE
    command.add_argument("--limit", type=float, default=limit, metavar="MIB", help=f"most MiB (default: {limit})")
    text = "also write stage 1's decoder, for evaluate"
    command.add_argument("--frame-decoder", type=Path, metavar="FILE", help=text)
    _add_recipe_flags(command)


def _add_begin(commands: argparse._SubParsersAction) -> None:
    command = _command(commands, "begin", "lay out a new run whose video stage goes on from a trained model", _begin)
    command.add_argument("--folder", type=Path, required=True, metavar="FOLDER", help="a new one, for all stages")
    _add_trained_flags(command)
    _add_recipe_flags(command)


def _add_trained_flags(command: ArgumentParser) -> None:
    text = "what export wrote (default: the demo model)"
    command.add_argument("--checkpoint", type=Path, default=DEMO_MODEL, metavar="FILE", help=text)
    text = "its frame-wise decoder (default: the demo model's)"
    command.add_argument("--frame-decoder", type=Path, default=FRAME_DECODER, metavar="FILE", help=text)


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    command = _command(commands, "evaluate", "judge a model on held-out scenes", _evaluate)
    _add_trained_flags(command)
    command.add_argument("--folder", type=Path, required=True, metavar="FOLDER", help="for figures and sheet")
    command.add_argument("--quick", action="store_true", help="a tenth of the scenes, for a first look")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _add_lora(commands: argparse._SubParsersAction) -> None:
    command = _command(commands, "lora", "finetune a released checkpoint on clips", _train_lora, _LORA_MEMORY)
    command.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help=".safetensors or folder")
    command.add_argument("--clips", type=Path, required=True, metavar="FOLDER", help="movies, GIFs, folders of PNGs")
    command.add_argument("--folder", type=Path, required=True, metavar="FOLDER", help="for the result")
    command.add_argument("--needed", type=int, default=1, metavar="N", help="fewest clips to train on (default: 1)")
    command.add_argument("--layers", choices=get_args(Layers), default="both", help="trained (default: both)")
    command.add_argument("--rank", type=int, default=16, metavar="N", help="of the update (default: 16)")
    command.add_argument("--alpha", type=float, metavar="X", help="its scale times the rank (default: the rank)")
    command.add_argument("--steps", type=int, default=1000, metavar="N", help="(default: 1000)")
    command.add_argument("--learning-rate", type=float, default=1e-4, metavar="X", help="(default: 0.0001)")
    command.add_argument("--frames", type=int, default=14, metavar="N", help="of a clip; 25 for svd_xt (default: 14)")
    command.add_argument("--motion-bucket", type=int, default=127, metavar="N", help="said of all clips (default: 127)")
    command.add_argument("--dtype", choices=tuple(DTYPES), help="(default: bfloat16 on cuda, else float32)")
    command.add_argument("--no-checkpointing", action="store_true", help="faster, and five times the memory")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="(default: 0)")
    _add_machine_flags(command)


def _print_recipe(args: Namespace) -> None:
    sys.stdout.write(f"{_recipe(args).to_json()}\n")


def _train_stage(args: Namespace) -> None:
    recipe = _recipe(args)
    with process_group(args.device) as group:
        source = open_source(recipe.data, recipe.seed, _reporter(group))
        _say_done(STAGES[args.stage](recipe, source, args.folder, _machine(args), group))


def _begin(args: Namespace) -> None:
    begin_from(args.checkpoint, args.frame_decoder, _recipe(args), args.folder)
    sys.stdout.write(f"{args.folder}: go on with python -m training video --folder {args.folder}\n")


def _export(args: Namespace) -> None:
    if not 0 < args.limit < math.inf:
        raise InputError(f"limit {args.limit} is no size: give MiB, such as {SHIPPED_LIMIT // MEBIBYTE}")
    path = export(_recipe(args), args.folder, args.output, int(args.limit * MEBIBYTE))
    sys.stdout.write(f"{path}: {path.stat().st_size / MEBIBYTE:.2f} MiB\n")
    if args.frame_decoder is not None:
        sys.stdout.write(f"{export_frame_decoder(args.folder, args.frame_decoder)}\n")


def _evaluate(args: Namespace) -> None:
    svd = load_checkpoint(args.checkpoint)
    frame_decoder(args.frame_decoder, svd.config.vae)  # fail early if it does not fit
    make_folder(args.folder / "sheet.png")
    extent, processes = QUICK if args.quick else FULL, os.cpu_count() or 1
    figures = evaluate_files(args.checkpoint, args.frame_decoder, extent, _say, processes)
    save_figures(figures, args.folder)
    with replacing(args.folder / "sheet.png") as scratch:
        Image.fromarray(contact_sheet(sheet_rows(svd))).save(scratch)
    missed = [figure.name for figure in figures if not figure.reached]
    sys.stdout.write(f"{args.folder}: {len(figures) - len(missed)} of {len(figures)} bars reached\n")


def _train_lora(args: Namespace) -> None:
    config = _lora_config(args)
    with process_group(args.device) as group:
        found = {"frames": config.frames, "seed": config.seed, "motion_bucket": config.motion_bucket}
        clips = open_folder(args.clips, needed=args.needed, **found)
        for skipped in clips.skipped:
            _reporter(group)(skipped)
        _say_done(train_lora(args.checkpoint, clips, config, args.folder, _machine(args), group))


def _lora_config(args: Namespace) -> LoRAConfig:
    default = LoRAConfig()
    optimisation = dataclasses.replace(default.optimisation, steps=args.steps, learning_rate=args.learning_rate)
    config = LoRAConfig(
        optimisation=optimisation,
        rank=args.rank,
        alpha=float(args.rank if args.alpha is None else args.alpha),
        layers=args.layers,
        frames=args.frames,
        motion_bucket=args.motion_bucket,
        checkpointing=not args.no_checkpointing,
        seed=args.seed,
    )
    config.check()
    return with_dtype(config, args.device) if args.dtype is None else dataclasses.replace(config, dtype=args.dtype)


def _recipe(args: Namespace) -> Recipe:
    return with_settings(read_recipe(args.recipe) if args.recipe else DEMO, args.settings)


def _machine(args: Namespace) -> Machine:
    for name, least in (("workers", 0), ("save_every", 1), ("stop_after", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise InputError(f"{name.replace('_', ' ')} {value} is less than {least}: give a larger number")
    return Machine(args.device, args.workers, args.save_every, args.stop_after)


def _reporter(group: Group) -> object:
    def report(skipped: Skipped) -> None:
        if group.leads:
            sys.stderr.write(f"skipped {skipped.path}: {skipped.reason}\n")

    return report


def _say_done(run: Run) -> None:
    if run.group.leads:
        loss = f", loss {run.losses[-1]:.4f}" if run.losses else ""
        sys.stdout.write(f"{run.place.weights}: step {run.step} of {run.optimisation.steps}{loss}\n")
