"""Cats and dogs that are drawn, not photographed."""
