"""Sockets of our own: opened models and the profile. Conditioning, latents and images use the host's own sockets.

The names are permanent: saved workflows refer to them.
"""

from comfy_api.latest import io

WanExperts = io.Custom("WAN_EXPERTS")
WanTextEncoder = io.Custom("WAN_TEXT_ENCODER")
WanVae = io.Custom("WAN_VAE")
WanProfile = io.Custom("WAN_PROFILE")
