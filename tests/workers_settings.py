"""Settings for the example shop on several machines, with small claims, so that each worker gets many."""

from tests.qcluster_settings import *  # noqa: F403
from tests.qcluster_settings import VISUAL_SEARCH

VISUAL_SEARCH = VISUAL_SEARCH | {"BATCH_SIZE": 8, "ENCODER_THREADS": 1, "EMBEDDING_CACHE_SECONDS": 0}
