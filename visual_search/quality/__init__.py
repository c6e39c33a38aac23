"""How good the search is on this shop's own photos: labelled queries, metrics, reports, thresholds."""
