"""The studio: pages in a browser on which facts are typed, looked at, undone and exported."""
