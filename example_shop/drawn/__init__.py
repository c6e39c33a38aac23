"""A catalogue drawn by our own code: for the demo without any download, for tests in a browser, for screenshots."""
