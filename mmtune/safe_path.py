"""No code out of the folder that a command happens to be started in.

Python itself puts the current folder first among the places where `import` looks, for `python -m` and `python -c`, and
for an empty entry of PYTHONPATH; a `json.py` in a folder that somebody handed over would run. This file takes it out
again, before anything else is imported: it may import only what Python itself has loaded by then.
"""

import os
import sys


def of_command() -> bool:
    """Whether this process is the `mmtune` command, rather than a program of somebody else that imports mmtune."""
    first = sys.argv[0] if getattr(sys, "argv", None) else ""
    if first == "-m":  # what Python puts there until the module is found
        return any(word.removeprefix("-m").split(".")[0] == "mmtune" for word in sys.orig_argv[1:])
    return os.path.basename(first).removesuffix(".exe").removesuffix("-script.py") == "mmtune"


def guard() -> None:
    """Leave the current folder out, here and in every Python that this process starts."""
    if sys.argv[0] == "-m" and not sys.flags.safe_path:
        del sys.path[0]
    given = os.environ.get("PYTHONPATH", "")
    words = given.split(os.pathsep)
    if given and "" in words:  # as `PYTHONPATH=$PYTHONPATH:/lib` makes it; who means the current folder writes a dot
        words = [word for word in words if word]
        here = current()
        if here in sys.path and here not in [os.path.abspath(word) for word in words]:
            sys.path.remove(here)
        os.environ["PYTHONPATH"] = os.pathsep.join(words)
        if not words:
            del os.environ["PYTHONPATH"]
    os.environ["PYTHONSAFEPATH"] = "1"


def current() -> str:
    """The current folder; empty where it is gone."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def handed_on() -> list[str]:
    """Where a child is to look for modules: where this process does, but for the current folder.

    The current folder stays where an installed package put it, after Python's own library.
    """
    here, own = current(), os.path.dirname(os.__file__)
    behind = sys.path.index(own) if own in sys.path else 0
    found = []
    for index, entry in enumerate(sys.path):
        whole = os.path.abspath(entry) if entry else here
        if entry and whole and (whole != here or index > behind):
            found.append(whole)
    return found
