"""What developers run: installation, demo, drivers of server and browser, thumbnails, the archive, benchmarks."""
