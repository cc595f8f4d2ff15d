"""How fast petseg is, beside Keras's own loop and beside what the machine could do: python -m petseg.benchmark."""
