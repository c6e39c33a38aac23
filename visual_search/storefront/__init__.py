"""The search page and the widget. Knows nothing of the API."""
