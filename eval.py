"""Uses a trained run; the command `petseg-eval` is the same from anywhere."""

from petseg import programs

if __name__ == "__main__":
    programs.evaluate()
