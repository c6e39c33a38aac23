"""A shop with other models: UUID keys, an image on the product, many-to-many tags, two-hop relations, subclasses."""
