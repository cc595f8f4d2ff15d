"""What a run shows of itself: TensorBoard, figures, the terminal."""
