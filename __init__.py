"""Wan Velocity: a ComfyUI node pack that runs the Wan 2.2 mixture-of-experts video models."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> object:
    """The pack's ComfyExtension; imported when ComfyUI asks, so that the core and its tests work without ComfyUI."""
    from .nodes import WanVelocityExtension

    return WanVelocityExtension()
