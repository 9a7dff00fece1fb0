"""A complete miniature Wan 2.2 T2V model: the same architecture and files, small enough for tests and the demo."""
