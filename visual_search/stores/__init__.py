"""Vector stores, which hold and search points. Independent of Django, models and requests."""
