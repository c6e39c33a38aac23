"""A shop of another shape: UUID keys, an image on the product, many-to-many tags, two-hop relations, subclasses."""
