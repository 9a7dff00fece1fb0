"""What is decided for a Wan transformer that belongs to the host: its attention, its block work, its report."""
