"""``python -m gtp_experiments``."""

from gtp_experiments.cli import main
from gtp_experiments.processes import end

if __name__ == "__main__":
    end(main())
