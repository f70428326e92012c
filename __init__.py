"""Stable Video for ComfyUI. `nodes/__init__.py` lists the nodes; nothing runs until ComfyUI asks for them."""

from .nodes import comfy_entrypoint as comfy_entrypoint

WEB_DIRECTORY = "./web"
