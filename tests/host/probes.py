"""Runs in ComfyUI's own Python, which takes ten seconds to import: all scenes that are played there, one after another.

`probes.py COMFYUI_ROOT PACK_ROOT` prints as JSON what `probe_blocks.py` and `probe_patcher.py` have seen, by name.
"""

import json
import sys

GIVEN = list(sys.argv)


def main() -> None:
    import probe_blocks

    seen = {"blocks": probe_blocks.play()}
    # It pretends another machine to the host, so it comes last; the host takes what is left of the arguments.
    sys.argv = GIVEN
    import probe_patcher

    seen["patcher"] = probe_patcher.play()
    sys.stdout.write(json.dumps(seen))


if __name__ == "__main__":
    main()
