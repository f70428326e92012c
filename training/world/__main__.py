"""Write a contact sheet of the synthetic world: `python -m training.world OUTPUT.png --seed N`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from svd_core.errors import OutputError, StableVideoError
from svd_core.media import replacing

from . import DEFAULT_FPS, DEFAULT_HEIGHT, DEFAULT_MOTION_BUCKET, DEFAULT_WIDTH, KINDS, draw_scene
from .sheet import contact_sheet


def main(argv: Sequence[str] | None = None) -> int:
    """Draw scenes and write the sheet. Returns 0 when done, 2 with one line on stderr for unusable input."""
    args = _parser().parse_args(argv)
    try:
        _write(args)
    except StableVideoError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def _write(args: argparse.Namespace) -> None:
    settings = {name: getattr(args, name) for name in ("width", "height", "fps", "motion_bucket", "kind")}
    scenes = [draw_scene(seed, **settings) for seed in range(args.seed, args.seed + args.count)]
    for scene in scenes:
        sys.stdout.write(f"seed {scene.seed}: {scene.kind}, {scene.speed:.2f} pixels a frame\n")
    try:
        with replacing(args.output) as scratch:
            contact_sheet([scene.frames for scene in scenes], args.columns).save(scratch)
    except StableVideoError:
        raise
    except ValueError as error:  # raised by Pillow for an unknown suffix
        raise OutputError(f"cannot write {args.output}: {error}; give a file ending in .png in a folder") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.world", description="Draw scenes of the synthetic world.")
    parser.add_argument("output", type=Path, help="picture to write, one row a scene")
    parser.add_argument("--seed", type=int, default=0, help="of the first scene; the others follow (default 0)")
    parser.add_argument("--count", type=_positive, default=8, help="scenes (default 8)")
    parser.add_argument("--columns", type=_positive, default=5, help="frames shown of each (default 5)")
    parser.add_argument("--width", type=int, default=DEFAULT_WIDTH)
    parser.add_argument("--height", type=int, default=DEFAULT_HEIGHT)
    parser.add_argument("--fps", type=float, default=DEFAULT_FPS)
    parser.add_argument("--motion-bucket", type=float, default=DEFAULT_MOTION_BUCKET)
    parser.add_argument("--kind", choices=KINDS, help="default: the seed chooses")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is too few: give at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
