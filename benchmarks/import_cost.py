"""Start-up time that the pack adds to ComfyUI: `python -m benchmarks.import_cost`.

Each round is a separate process: ComfyUI's nodes are imported first, as at its start, then its loader imports the pack,
and only that is timed. A first round, not counted, compiles the Python files.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.comfyui_server import PACK_FOLDER, prepare
from tools.fetch_comfyui import comfyui_paths

ROUNDS = 5
LIMIT = 0.3
"""Allowed seconds."""

ROUND = """
import asyncio, json, sys, time
sys.path.insert(0, sys.argv.pop(1))
pack = sys.argv.pop(1)
import comfy.options
comfy.options.enable_args_parsing()
import utils.extra_config, server, nodes
asyncio.run(nodes.init_builtin_extra_nodes())
before = set(sys.modules)
start = time.perf_counter()
loaded = asyncio.run(nodes.load_custom_node(pack))
seconds = time.perf_counter() - start
others = sorted({name.partition(".")[0] for name in set(sys.modules) - before if "custom_nodes" not in name})
print(json.dumps({"loaded": loaded, "seconds": seconds, "others": others}))
"""


def measure(comfyui: Path, base: Path) -> dict[str, object]:
    """One round: whether the pack loaded, the seconds, and the packages that only it imported."""
    pack = base / "custom_nodes" / PACK_FOLDER
    command = [sys.executable, "-c", ROUND, str(comfyui), str(pack), "--cpu", f"--base-directory={base}"]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=base)
    return json.loads(ran.stdout.splitlines()[-1])


def main() -> None:
    for comfyui in comfyui_paths():
        with tempfile.TemporaryDirectory(prefix="import-cost-") as folder:
            base = prepare(Path(folder))
            measure(comfyui, base)
            rounds = [measure(comfyui, base) for _ in range(ROUNDS)]
        if not all(each["loaded"] for each in rounds):
            raise SystemExit(f"error: ComfyUI in {comfyui} could not load the pack")
        seconds = [each["seconds"] for each in rounds]
        result = {
            "case": f"import of the pack, {ROUNDS} rounds in {comfyui.name}",
            "median_s": round(statistics.median(seconds), 3),
            "best_s": round(min(seconds), 3),
            "worst_s": round(max(seconds), 3),
            "limit_s": LIMIT,
            "packages_besides_comfyui": rounds[0]["others"],
        }
        print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
