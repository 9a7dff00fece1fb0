"""The elementwise work of the models: what it computes, in PyTorch, and fused kernels for the same."""
