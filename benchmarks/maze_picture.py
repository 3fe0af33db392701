"""Makes the picture on top of the README of the one that `make demo` draws: smaller, fewer colours.

python -m benchmarks.maze_picture [outputs/trajectories.png]
"""

import argparse
from pathlib import Path

from PIL import Image

from benchmarks.pages import ROOT

PICTURE = ROOT / "docs" / "pictures" / "maze.png"
WIDTH, COLOURS = 1400, 256  # of what a page shows, and of a palette


def main() -> None:
    """Writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("drawn", type=Path, nargs="?", default=Path("outputs/trajectories.png"))
    drawn = Image.open(parser.parse_args().drawn).convert("RGB")
    height = round(drawn.height * WIDTH / drawn.width)
    small = drawn.resize((WIDTH, height), Image.Resampling.LANCZOS)
    small.quantize(COLOURS, dither=Image.Dither.NONE).save(PICTURE, optimize=True)
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
