"""petseg: a U-Net for the Oxford-IIIT Pet images, trained by a loop of its own."""

__version__ = "0.1.0"
