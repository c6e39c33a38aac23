"""How good is the search on the shop's own photos, and how does it get better? See docs/quality.md."""
