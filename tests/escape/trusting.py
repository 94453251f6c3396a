"""A claudebox command that shows text as it is: the control of the forgeries. Its name comes first."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import claudebox.printable


def as_it_is(text: str) -> str:
    return text


claudebox.printable.printable = as_it_is

from claudebox import main  # noqa: E402

# Also bytes that are no UTF-8.
sys.stderr.reconfigure(errors="surrogateescape")
sys.stdout.reconfigure(errors="surrogateescape")
sys.exit(main.entry(sys.argv[1:]))
