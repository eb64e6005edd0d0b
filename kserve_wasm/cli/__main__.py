"""``python -m kserve_wasm.cli``: the command where its script is not installed."""

import sys

from kserve_wasm.cli import main

if __name__ == "__main__":
    sys.exit(main())
