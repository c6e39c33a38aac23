"""A catalogue drawn by code: for a demo without downloads, for browser tests and for screenshots."""
