"""`python -m runner.report outputs/NAME`: see `runner.sweep.webpage`."""

import sys

from runner.sweep.webpage import main

if __name__ == "__main__":
    sys.exit(main())
