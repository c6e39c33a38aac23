"""The search page and the widget. Does not import the API."""
