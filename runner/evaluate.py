"""`python -m runner.evaluate outputs/NAME/ID`: see `runner.engine.reopened`."""

import sys

from runner.engine.reopened import main

if __name__ == "__main__":
    sys.exit(main())
