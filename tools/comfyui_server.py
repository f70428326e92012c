"""Run a real ComfyUI without its page: start it on a free port, drive it over HTTP and its websocket, and stop it.

    prepare(folder)                                    # models/, input/, output/ and this pack, and no other
    with running(folder, newest_comfyui()) as comfy:
        run = comfy.run(json.loads(Path("workflows/api/image_to_video.json").read_text()))
        video = comfy.fetch(run.files("9")[0])

Everything that ComfyUI writes goes to that folder. Needs only ComfyUI's own requirements.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).resolve().parents[1]
PACK_FOLDER = "comfyui-stable-video"
"""Name of the pack's folder in custom_nodes, as installed from the registry."""

FOLDERS = ("models/checkpoints", "input", "output", "temp", "user", "custom_nodes")
HOST = "127.0.0.1"

START_SECONDS = 180.0
STOP_SECONDS = 10.0
RUN_SECONDS = 600.0
POLL_SECONDS = 0.1
TAIL_LINES = 40

PREVIEWS = (1, 2)
"""First number of a binary websocket message that holds a picture (ComfyUI's protocol.py)."""

WATCHER = """
import os, signal, sys
if not sys.stdin.read():  # it ends with a word, or with the process that holds its other end
    getattr(os, "killpg", os.kill)(int(sys.argv[1]), getattr(signal, "SIGKILL", signal.SIGTERM))
"""

Prompt = Mapping[str, Mapping[str, Any]]
"""A workflow in API format: node id -> {"class_type": ..., "inputs": {...}}."""


class ServerError(Exception):
    """ComfyUI did not start, stopped or did not answer; the message ends with the end of its log."""


class PromptError(Exception):
    """ComfyUI refused a prompt, or one of its nodes failed. `node` is that node's id, or None for the whole prompt."""

    def __init__(self, message: str, node: str | None = None, run: Run | None = None) -> None:
        super().__init__(message)
        self.node = node
        self.run = run


class Interrupted(PromptError):
    """The prompt was cancelled while running."""


@dataclass(frozen=True, slots=True)
class Event:
    """One message of the websocket. `data` is parsed JSON, or the bytes of a picture for the kind "preview"."""

    kind: str
    data: Any
    seconds: float
    """Time of arrival, by time.monotonic."""

    @property
    def prompt(self) -> str | None:
        return self.data.get("prompt_id") if isinstance(self.data, dict) else None


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of a prompt: its history entry, and the events between its start and end."""

    prompt_id: str
    history: Mapping[str, Any]
    events: Sequence[Event]
    seconds: float

    def files(self, node: str) -> list[dict[str, str]]:
        """Files saved by an output node, in order: {"filename", "subfolder", "type"}, as taken by `ComfyUI.fetch`."""
        outputs = self.history["outputs"].get(node, {})
        return [
            item
            for items in outputs.values()
            if isinstance(items, list)
            for item in items
            if isinstance(item, dict) and "filename" in item
        ]

    def steps(self) -> list[int]:
        """Every value of the progress bars, in order."""
        return [event.data["value"] for event in self.events if event.kind == "progress"]

    def previews(self) -> list[bytes]:
        """The preview pictures sent while it ran, as JPEG or PNG."""
        return [event.data for event in self.events if event.kind == "preview"]


@dataclass(slots=True)
class Events:
    """The websocket, read by its own thread. Use `ComfyUI.events`."""

    url: str
    client: str
    seen: list[Event] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    closed: bool = False
    _thread: threading.Thread | None = None
    _loop: asyncio.AbstractEventLoop | None = None
    _reading: asyncio.Task | None = None

    def open(self) -> None:
        """Connect; returns once ComfyUI has answered."""
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="comfyui-events", daemon=True)
        self._thread.start()
        self.wait(lambda event: event.kind == "status", seconds=START_SECONDS)

    def close(self) -> None:
        if self._loop is not None and self._reading is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._reading.cancel)
        if self._thread is not None:
            self._thread.join()

    def wait(self, wanted: Callable[[Event], bool], *, after: int = 0, seconds: float = RUN_SECONDS) -> int:
        """Index in `seen` of the first wanted event from `after` on. Raises ServerError if none arrives in time."""
        deadline = time.monotonic() + seconds
        with self.changed:
            while True:
                for position, event in enumerate(self.seen[after:], start=after):
                    if wanted(event):
                        return position
                after = len(self.seen)
                left = deadline - time.monotonic()
                if self.closed or left <= 0:
                    reason = "ComfyUI closed the connection" if self.closed else f"nothing came in {seconds:.0f} s"
                    raise ServerError(f"waited for an event of ComfyUI, but {reason}")
                self.changed.wait(left)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reading = asyncio.create_task(self._read())
        try:
            await self._reading
        except (asyncio.CancelledError, aiohttp.ClientError):
            pass
        finally:
            with self.changed:
                self.closed = True
                self.changed.notify_all()

    async def _read(self) -> None:
        address = f"{self.url}/ws?clientId={self.client}"
        async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as connection:
            async for message in connection:
                event = _event(message)
                if event is not None:
                    with self.changed:
                        self.seen.append(event)
                        self.changed.notify_all()


def _event(message: aiohttp.WSMessage) -> Event | None:
    now = time.monotonic()
    if message.type == aiohttp.WSMsgType.TEXT:
        parsed = json.loads(message.data)
        return Event(parsed["type"], parsed.get("data"), now)
    if message.type != aiohttp.WSMsgType.BINARY:
        return None
    (number,) = struct.unpack(">I", message.data[:4])
    # A second number before the picture gives its format, JPEG or PNG; it is skipped, as the picture shows it too.
    return Event("preview", message.data[8:], now) if number in PREVIEWS else Event("binary", message.data, now)


@dataclass(slots=True)
class ComfyUI:
    """A running ComfyUI, as started by `running`."""

    url: str
    process: subprocess.Popen
    base: Path
    log: Path
    events: Events

    def queue(self, prompt: Prompt, *, preview_method: str = "default") -> str:
        """Queue a prompt and return its id. Raises PromptError if ComfyUI refuses it."""
        body = {
            "prompt": prompt,
            "client_id": self.events.client,
            "extra_data": {"preview_method": preview_method},
        }
        try:
            return json.loads(self._post("/prompt", body))["prompt_id"]
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise
            raise refusal(json.load(error)) from None

    def finish(self, prompt_id: str, *, seconds: float = RUN_SECONDS) -> Run:
        """Wait until a queued prompt has ended. Raises PromptError if a node failed, Interrupted if cancelled."""

        def over(event: Event) -> bool:
            return event.kind == "executing" and event.prompt == prompt_id and event.data["node"] is None

        try:
            end = self.events.wait(over, seconds=seconds)
        except ServerError as error:
            raise ServerError(f"{error}:\n{tail(self.log)}") from None
        start = self.events.wait(lambda event: event.kind == "execution_start" and event.prompt == prompt_id)
        events = tuple(self.events.seen[start : end + 1])
        run = Run(prompt_id, self.history(prompt_id), events, events[-1].seconds - events[0].seconds)
        for event in events:
            if event.kind == "execution_error" and event.prompt == prompt_id:
                raise PromptError(event.data["exception_message"].strip(), event.data["node_id"], run)
            if event.kind == "execution_interrupted" and event.prompt == prompt_id:
                raise Interrupted(f"cancelled in node {event.data['node_id']}", event.data["node_id"], run)
        return run

    def run(self, prompt: Prompt, *, preview_method: str = "default", seconds: float = RUN_SECONDS) -> Run:
        """Queue a prompt and wait until it has ended. Raises PromptError."""
        return self.finish(self.queue(prompt, preview_method=preview_method), seconds=seconds)

    def interrupt(self) -> None:
        """Cancel the running prompt."""
        self._post("/interrupt", {})

    def history(self, prompt_id: str) -> dict[str, Any]:
        """The record of a finished prompt: its outputs and status."""
        return self.get_json(f"/history/{prompt_id}")[prompt_id]

    def fetch(self, file: Mapping[str, str]) -> bytes:
        """The content of a file saved by an output node, named as in `Run.files`."""
        names = {key: file.get(key, "") for key in ("filename", "subfolder", "type")}
        return self.get(f"/view?{urllib.parse.urlencode(names)}")

    def object_info(self) -> dict[str, Any]:
        """Descriptions of all nodes known to ComfyUI, by id."""
        return self.get_json("/object_info")

    def system_stats(self) -> dict[str, Any]:
        return self.get_json("/system_stats")

    def free(self) -> None:
        """Ask ComfyUI to unload its models and drop its cache after the running prompt."""
        self._post("/free", {"unload_models": True, "free_memory": True})

    def set(self, settings: Mapping[str, Any]) -> None:
        """Change settings of the page, by ComfyUI's names."""
        self._post("/settings", settings)

    def get(self, path: str) -> bytes:
        """The response from any other path of the server."""
        return _open(f"{self.url}{path}")

    def get_json(self, path: str) -> Any:
        return json.loads(self.get(path))

    def log_text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def _post(self, path: str, body: object) -> bytes:
        data = json.dumps(body).encode()
        return _open(urllib.request.Request(f"{self.url}{path}", data, {"Content-Type": "application/json"}))


def refusal(answer: Mapping[str, Any]) -> PromptError:
    """ComfyUI's answer to a prompt that it refused, as an error with a one-line message."""
    for node, problems in (answer.get("node_errors") or {}).items():
        for error in problems["errors"]:
            return PromptError(f"{problems['class_type']}: {error['message']}: {error['details']}", node)
    error = answer["error"]
    return PromptError(f"{error['message']}: {error['details']}")


def prepare(base: Path, pack: Path | None = ROOT) -> Path:
    """Create a base directory for ComfyUI with this pack and no other; existing files are kept."""
    for folder in FOLDERS:
        (base / folder).mkdir(parents=True, exist_ok=True)
    link = base / "custom_nodes" / PACK_FOLDER
    if pack is not None and not (link.is_symlink() and link.resolve() == pack):
        link.unlink(missing_ok=True)
        link.symlink_to(pack, target_is_directory=True)
    return base


@contextmanager
def running(
    base: Path,
    comfyui: Path,
    flags: Sequence[str] = (),
    *,
    cpu: bool = True,
    port: int | None = None,
    log: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[ComfyUI]:
    """Run ComfyUI from the folder `comfyui` on a base directory made by `prepare`, and stop it and all its child
    processes on exit. Its output goes to `log` (by default base/comfyui.log), which is kept. Raises ServerError if it
    does not start."""
    port = free_port(port or 0)
    log = log or base / "comfyui.log"
    command = [*command_line(base.resolve(), comfyui, port), *(["--cpu"] if cpu else []), *flags]
    variables = {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=base,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    watcher = watch(process)
    url = f"http://{HOST}:{port}"
    comfy = ComfyUI(url, process, base, log, Events(url, uuid.uuid4().hex))
    try:
        _await_answer(comfy)
        comfy.events.open()
        yield comfy
    finally:
        comfy.events.close()
        stop(process)
        watcher.communicate(b"stopped")


def command_line(base: Path, comfyui: Path, port: int) -> list[str]:
    """Command that starts ComfyUI so that it writes nothing outside `base` and does not use the network."""
    return [
        sys.executable,
        str(comfyui / "main.py"),
        f"--base-directory={base}",
        f"--database-url=sqlite:///{base / 'user' / 'comfyui.db'}",
        f"--listen={HOST}",
        f"--port={port}",
        "--disable-auto-launch",
        "--disable-api-nodes",
    ]


def free_port(wanted: int = 0) -> int:
    """A free loopback port: the wanted one, or any for 0. Raises ServerError if it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just released counts as free
        try:
            probe.bind((HOST, wanted))
        except OSError as error:
            raise ServerError(f"port {wanted} is taken ({error}): end what listens there, or choose another") from None
        return probe.getsockname()[1]


def watch(process: subprocess.Popen) -> subprocess.Popen:
    """Start a small process that kills a server and its children once this process has ended for any reason. Write to
    its stdin when the server has been stopped."""
    command = [sys.executable, "-S", "-c", WATCHER, str(process.pid)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def stop(process: subprocess.Popen) -> None:
    """Stop a server and its child processes: SIGTERM first, SIGKILL if it does not stop."""
    for number in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
        _signal_group(process, number)
        try:
            process.wait(STOP_SECONDS)
            break
        except subprocess.TimeoutExpired:
            continue


def _signal_group(process: subprocess.Popen, number: int) -> None:
    if process.poll() is not None:
        return
    if hasattr(os, "killpg"):
        os.killpg(process.pid, number)  # it leads its own session, so its process id is the group's id
    else:
        process.terminate()


def _await_answer(comfy: ComfyUI) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if comfy.process.poll() is not None:
            raise ServerError(
                f"ComfyUI stopped with status {comfy.process.returncode} at the start:\n{tail(comfy.log)}"
            )
        try:
            comfy.system_stats()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(POLL_SECONDS)
        else:
            return
    raise ServerError(f"ComfyUI did not answer within {START_SECONDS:.0f} s:\n{tail(comfy.log)}")


def tail(log: Path, lines: int = TAIL_LINES) -> str:
    """The end of a log."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def _open(request: str | urllib.request.Request) -> bytes:
    # Ignore proxies of the environment: the server is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=RUN_SECONDS) as answer:
        return answer.read()
