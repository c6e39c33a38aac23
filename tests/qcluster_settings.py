"""Settings for the example shop in its own process: all files in SHOP_STATE_DIR, and short leases."""

from example_shop.settings import *  # noqa: F403
from example_shop.settings import VISUAL_SEARCH

VISUAL_SEARCH = VISUAL_SEARCH | {"LEASE_SECONDS": 10, "SWEEP_SECONDS": 1, "PHOTO_RATE": None}
