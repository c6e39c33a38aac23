"""What the API and the storefront share: from a request to a query, from an error to a response."""
