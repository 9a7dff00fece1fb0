"""Linear layers: what stands beside their products."""
