"""The REST API. Knows nothing of the storefront."""
