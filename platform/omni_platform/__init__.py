"""Data, files, clusters, training. Knows no model."""

import os

# Ray reads these once, when it is first imported, so they stand here, before any room can import it.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Unset, a token file left by another cluster makes every call answer 401.
os.environ.setdefault("RAY_AUTH_MODE", "token" if os.environ.get("RAY_AUTH_TOKEN_PATH") else "disabled")
if not os.environ.get("RAY_ADDRESS"):
    # Despite its name it also holds on Linux: a Ray that we start listens on loopback only.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
