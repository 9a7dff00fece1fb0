"""Importing large libraries: beside something else, and without the garbage collector.

A library of a thousand modules makes some hundred thousand objects that all stay. Python's collector looks through them
again and again while they grow in number, and finds nothing: a quarter of the time that such an import takes.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread

from .errors import BROKEN_LIBRARY


def in_thread(imports: Callable[[], object]) -> Thread:
    """Import in a thread of its own. Of several imports of one module Python does one, and the others wait for it.

    What fails here is not told: it fails again for who needs it, in his own thread and with his own words.
    """

    def work() -> None:
        with suppress(*BROKEN_LIBRARY):
            imports()

    thread = Thread(target=work, name="wan-velocity-import")
    thread.start()
    return thread


@contextmanager
def collector_paused() -> Iterator[None]:
    """Nothing is collected meanwhile, in no thread; of several that overlap the first one to end ends the pause.

    What was made goes straight to the oldest generation, the next small collection would look through all of it.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        # Both are a matter of pointers. Whoever has frozen objects himself wants them to stay so.
        if not gc.get_freeze_count():
            gc.freeze()
            gc.unfreeze()
        gc.enable()
