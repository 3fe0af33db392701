"""``python -m gtp_experiments``."""

import sys

from gtp_experiments.cli import main

if __name__ == "__main__":
    sys.exit(main())
