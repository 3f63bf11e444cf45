"""Write demo images, list files or zip files from folders, or check all images; -h lists the commands."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from paddlevit.commands.prepare_data import main

if __name__ == "__main__":
    sys.exit(main())
