"""The elementwise work of a transformer block: what it computes, in PyTorch, and fused kernels for the same."""
