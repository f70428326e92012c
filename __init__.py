"""Stable Video for ComfyUI. The nodes are listed in `nodes/__init__.py`; nothing happens before ComfyUI asks for them."""

from .nodes import comfy_entrypoint as comfy_entrypoint

WEB_DIRECTORY = "./web"
