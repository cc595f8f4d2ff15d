"""The demo page: segments photographs in the browser."""
