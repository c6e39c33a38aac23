"""The throttle classes that THROTTLE_CLASSES names. The search page counts photos by the same ones."""

from visual_search.web.throttles import PhotoThrottle

__all__ = ["PhotoThrottle"]
