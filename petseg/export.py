"""Where petseg.deployment.export was once: `.keras` files that were exported then name this module."""

from petseg.deployment.export import Serving

__all__ = ["Serving"]
