"""Wan Velocity: a ComfyUI node pack that runs the Wan 2.2 mixture-of-experts video models.

Nothing of ComfyUI is imported here, so that the pack's core and its tests work without it.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .nodes import WanVelocityExtension


async def comfy_entrypoint() -> "WanVelocityExtension":
    """What ComfyUI calls to get the nodes."""
    from .nodes import WanVelocityExtension

    return WanVelocityExtension()
