"""Where the layer of exported `.keras` files was once defined; these files name this module."""

from petseg.deployment.export_formats import Serving

__all__ = ["Serving"]
