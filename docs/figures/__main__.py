"""Write all figures of the documentation, and the front page's table: python docs/figures [NAME ...]."""

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).parent

for script in sorted(HERE.glob("*.py")):
    if script.stem not in ("__main__", "style") and (len(sys.argv) == 1 or script.stem in sys.argv[1:]):
        print(script.stem)
        runpy.run_path(str(script), run_name="__main__")
