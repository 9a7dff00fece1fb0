"""The command line: one module per verb, each with `add_arguments(parser)` and `run(arguments) -> int`."""

from types import MappingProxyType

# The verbs and what they do. A verb's module is imported only when it is called, so that help is instant.
VERBS = MappingProxyType(
    {
        "generate": "make a video from a prompt",
        "plan": "show what a run would do here, in which time and memory, without running it",
        "inspect": "say what a checkpoint file or folder is",
        "bench": "measure speed and memory, one profile against others and against other people's code",
        "compare": "measure how far two videos or latents are apart, and fail past a limit",
        "doctor": "say what this machine can run, and why not",
    }
)
