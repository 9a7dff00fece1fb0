"""Training of the miniature: the VAE, a bank of latents, the two experts with their text encoder; see `miniature/train.py`."""
