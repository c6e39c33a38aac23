"""The throttle class for THROTTLE_CLASSES. The search page uses the same throttles as the API."""

from visual_search.web.throttles import PhotoThrottle

__all__ = ["PhotoThrottle"]
