"""Demo page that segments photographs in the browser: python -m petseg.deployment.demo --workdir=runs/pets

It is reachable from this machine only, unless --host says otherwise, and sends no data elsewhere.
"""

from petseg.config import command_line
from petseg.deployment.demo.server import DemoConfig, main

if __name__ == "__main__":
    command_line.run(main, DemoConfig, __doc__)
