"""Runs every example, two at a time, each in a process of its own.

The processes are forked, so that what all examples import is imported once: that takes as long as many an example.

    python tests/run_examples.py examples/*.py
"""

from __future__ import annotations

import os
import runpy
import sys
import tempfile
import traceback
from pathlib import Path

AT_ONCE = 2


def run(example: Path, said: int) -> None:
    """Run an example as Python would, in this process, and end it; output goes to the file ``said``."""
    status = 1
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.argv, sys.path[0] = [str(example)], str(example.parent)
    try:
        runpy.run_path(str(example), run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main(examples: list[Path]) -> int:
    """Run the examples, and print what each of them says; returns how many have failed."""
    import transformers  # noqa: F401

    import wim_kernel.engines.local.engine  # noqa: F401

    running: dict[int, tuple[Path, int]] = {}
    failed = 0
    while examples or running:
        while examples and len(running) < AT_ONCE:
            example, (said, name) = examples.pop(0), tempfile.mkstemp()
            Path(name).unlink()
            sys.stdout.flush()
            child = os.fork()
            if child == 0:
                run(example, said)
            running[child] = example, said
        child, status = os.wait()
        example, said = running.pop(child)
        os.lseek(said, 0, os.SEEK_SET)
        print(f"== {example}", flush=True)
        os.write(1, b"".join(iter(lambda said=said: os.read(said, 65536), b"")))
        os.close(said)
        failed += status != 0
    return failed


if __name__ == "__main__":
    sys.exit(main([Path(name) for name in sys.argv[1:]]))
