import platform
import resource
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from petseg.runtime import host_allocator
if sys.argv[1] == "keep":
    assert host_allocator.keep_freed_memory()
for _ in range(10):
    b"x" * 2**26
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_used_again_without_new_pages():
    faults = {}
    for mode in ("keep", "default"):
        output = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
        faults[mode] = int(output.stdout)
    pages = 2**26 // resource.getpagesize()
    assert faults["keep"] < 1.5 * pages  # the first round only
    assert faults["default"] > 9 * pages
