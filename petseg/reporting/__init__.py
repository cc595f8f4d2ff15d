"""Reporting of a run: TensorBoard, figures, terminal."""
