"""Where weights are while a run needs them, and how they get there without the device having to wait."""
