"""A step of training and what it is made of; knows no files, no TensorBoard, no checkpoints."""
