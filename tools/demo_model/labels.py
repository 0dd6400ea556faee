"""Writes a folder's scenes.json as the table that `phs-milvus eval` and `tune` read.

python -m tools.demo_model.labels assets/demo_scenes scenes.csv
phs-milvus eval scenes.csv --images assets/demo_scenes --model assets/demo_model --preset scores
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from phs_milvus.demo.scenes import load_scenes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path, help="a folder with scenes.json")
    parser.add_argument("table", type=Path, help="the CSV file to write")
    options = parser.parse_args()
    with options.table.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("image", "x0", "y0", "x1", "y1", "label"))
        for scene in load_scenes(options.scenes):
            table.writerows((scene.name, *item.box, item.label) for item in scene.objects)


if __name__ == "__main__":
    main()
