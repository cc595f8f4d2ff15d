"""Segmentation networks: float32 images in [0, 255] -> float32 logits."""
