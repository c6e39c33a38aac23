"""A request becomes a query, an error becomes an answer: what the API and the storefront share."""
