"""The Wan networks: single device, no optimization; they receive their attention and linear layers."""
