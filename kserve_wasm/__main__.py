"""``python -m kserve_wasm``: the server."""

import sys

from kserve_wasm.server.main import main

if __name__ == "__main__":
    sys.exit(main())
