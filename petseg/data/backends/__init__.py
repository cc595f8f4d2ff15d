"""Backends of `Examples`, chosen by --cache: memory, disk, or decoding on demand."""
