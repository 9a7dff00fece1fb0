"""Measurements side by side, in one run: our profiles against each other and against other people's code.

Every contestant does the same work on the same random numbers at real size, and what it computes is compared with what
the first one computed, so that a fast mistake is seen. Nothing of this package is imported by the engine.
"""
