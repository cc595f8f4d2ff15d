"""A page in the browser that segments photographs."""
