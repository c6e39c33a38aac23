"""The REST API. Does not import the storefront."""
