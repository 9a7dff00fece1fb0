"""Training of the miniature in three stages: the VAE, a bank of latents, the experts; see `miniature/train.py`."""
