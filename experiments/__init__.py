"""Programs on top of diffjax: train, sample, evaluate, bench.

    python -m experiments.train                                  # the 2-D spiral, a minute on a laptop
    python -m experiments.sample --workdir runs/spiral --num 64
    python -m experiments.evaluate --workdir runs/spiral

All input and output, flags, progress and strings live here; the library below knows nothing of them.
"""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the person at the keyboard can put right; its message is one line that says how."""


def run(main: Callable[[], int | None]) -> None:
    """Runs a program: a `UserError` or a failing file system becomes one line on stderr and exit code 2."""
    try:
        sys.exit(main())
    except (UserError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
