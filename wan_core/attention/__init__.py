"""Attention: the problem, the backends and the choice among them."""
