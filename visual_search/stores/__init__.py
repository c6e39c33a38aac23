"""Vector stores: where points are searched. They know nothing of Django, models or requests."""
