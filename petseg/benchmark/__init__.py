"""Benchmarks of training, input and evaluation, beside Keras and the machine's limits: python -m petseg.benchmark."""
