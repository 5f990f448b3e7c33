"""The allocator's limits during a block and after it, seen in where memory comes from."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from mlflow_slim.measurement.allocator import _glibc


@pytest.mark.skipif(_glibc() is None, reason="only glibc has these limits")
def test_freed_memory_stays_during_the_block_and_goes_back_after_it() -> None:
    code = """
        import numpy as np
        from mlflow_slim.measurement.allocator import freed_memory_kept

        def resident():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * 4096 / 2**20

        def use():
            np.ones(100 * 2**17)  # 100 MiB, gone at once

        use()
        before = resident()
        with freed_memory_kept() as kept:
            assert kept
            use()
            assert resident() - before > 90, resident() - before
        assert resident() - before < 50, resident() - before
        use()
        assert resident() - before < 50, resident() - before
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
