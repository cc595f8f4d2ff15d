"""A page in the browser that segments photographs: python -m petseg.deployment.demo --workdir=runs/pets

It is served by this machine to this machine, unless --host says otherwise, and sends nothing anywhere.
"""

from petseg.config import command_line
from petseg.deployment.demo.server import DemoConfig, main

if __name__ == "__main__":
    command_line.run(main, DemoConfig, __doc__)
