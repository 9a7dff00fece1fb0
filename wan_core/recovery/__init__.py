"""Nothing that was finished is lost: the state of a run on disk, the guard of its numbers, the ladder out of memory."""
