"""Measure and improve the search on the shop's own photos. See docs/quality.md."""
