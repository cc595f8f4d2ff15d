"""Trains a network; the command `petseg-train` is the same from anywhere."""

from petseg import programs

if __name__ == "__main__":
    programs.train()
