"""The example shop as its own process in tests: everything in SHOP_STATE_DIR, leases that end soon."""

from example_shop.settings import *  # noqa: F403
from example_shop.settings import VISUAL_SEARCH

VISUAL_SEARCH = VISUAL_SEARCH | {"LEASE_SECONDS": 10, "SWEEP_SECONDS": 1, "PHOTO_RATE": None}
